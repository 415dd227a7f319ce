"""Settings of the Llama-style decoder: plain values that need no registry, recipe or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from cm3core.interfaces.reach import TEXT, Outside

#: The default of `d_ff` is rounded up to a multiple of this.
FFN_MULTIPLE = 256


@dataclass(kw_only=True)
class LlamaSettings:
    """Sizes and options. The defaults have the size of the paper's 350M model.

    Chameleon 7B is `num_layers=32 d_model=4096 num_heads=32` with the other defaults.

    Args:
        context_length: maximum number of tokens in a sequence.
        num_layers: transformer blocks.
        d_model: width of the residual stream.
        num_heads: query heads.
        num_key_heads: key and value heads, a divisor of `num_heads` (grouped-query attention). None:
            `num_heads`.
        head_dim: dimension of a head, even; with `rope: 2d` a multiple of 4. None: d_model /
            num_heads.
        d_ff: width of the feed-forward layer. None: 8/3 of `d_model`, rounded up to a multiple of
            256.
        rope: what rotates queries and keys: "1d" the position in the sequence, "2d" the row and column of an
            image code in its picture; queries and keys of all other tokens are then zero (LlamaGen), so the
            order of words in a text matters little. Use "2d" for class-conditional models.
        rope_theta: base of the rotation's wavelengths.
        norm_eps: added to the variance by every normalisation.
        qk_norm: normalisation of queries and keys over the head dimension: "none", "layer_norm"
            (with weight and bias: Chameleon) or "rms_norm" (Emu3.5, Qwen3).
        qk_norm_groups: number of such norms, each for the same number of adjacent heads: 1 if all heads share
            one; the number of tensor-parallel ranks if the weights were trained that way. None: one for
            each head.
        swin_norm: normalise each branch's output instead of its input (Chameleon 30B).
        qkv_bias: whether the projections to queries, keys and values have a bias (Qwen2).
        tie_embeddings: the output projection is the token embedding.
        code_embed_dim: dimensions of the separate embeddings of image codes, which two layers project to
            `d_model` (Janus: 8). None: image codes are rows of the token table and the head, like other tokens.
        code_head_dim: width between the two layers of the separate head of image codes (Janus: `d_model`); set
            together with `code_embed_dim`. In training, the target decides between the heads: the loss is
            over codes for a code, and over all other ids otherwise.
        code_axes: axes of the image tokenizer's positions, name -> number of positions, such as {slot: 30, x: 99, y: 99}
            (cm3 describe image_tokenizer lists them): add a learned embedding for each axis to the inputs of image
            codes.
        token_shift: keys see the token before, too, see `cm3leon`. Needs as many key heads as query heads, which fill
            the width.
        dropout: dropout rate of both residual branches in training.
        init_std: standard deviation of all matrices, truncated at 3 deviations; matrices that write to the
            residual stream are divided by sqrt(2 * num_layers).
        activation_checkpointing: recompute each block in the backward pass; saves memory, takes a third
            more time.
        codebook_scale: standard deviation of image code embeddings that are initialised from the tokenizer's
            codebook, in units of `init_std`.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "rope": TEXT,
        "qk_norm": TEXT,
    }

    context_length: int = 4096
    num_layers: int = 24
    d_model: int = 1024
    num_heads: int = 16
    num_key_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None
    rope: str = "1d"
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    qk_norm: str = "layer_norm"
    qk_norm_groups: int | None = None
    swin_norm: bool = False
    qkv_bias: bool = False
    tie_embeddings: bool = False
    code_embed_dim: int | None = None
    code_head_dim: int | None = None
    code_axes: dict[str, int] = field(default_factory=dict)
    token_shift: bool = False
    dropout: float = 0.0
    init_std: float = 0.02
    activation_checkpointing: bool = False
    codebook_scale: float = 1.0

    @property
    def key_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def head_size(self) -> int:
        """Dimension of a head."""
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-int(8 * self.d_model / 3) // FFN_MULTIPLE) * FFN_MULTIPLE

    @property
    def has_own_codes(self) -> bool:
        """Whether image codes have separate embeddings and a separate head."""
        return self.code_embed_dim is not None

    def norm_groups(self, num_heads: int) -> int:
        """Number of norms for `num_heads` query or key heads."""
        return num_heads if self.qk_norm_groups is None else self.qk_norm_groups
