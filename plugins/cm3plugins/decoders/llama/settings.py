"""Settings of the Llama-style decoder: plain values, without a registry, a recipe or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cm3core.interfaces.reach import TEXT, Outside

#: `d_ff` is rounded up to a multiple of this where it is not given.
FFN_MULTIPLE = 256


@dataclass(kw_only=True)
class LlamaSettings:
    """Sizes and options; the defaults are of the size of the paper's 350M model.

    Chameleon 7B is `num_layers=32 d_model=4096 num_heads=32` with the other defaults.

    Args:
        context_length: maximum number of tokens in a sequence.
        num_layers: transformer blocks.
        d_model: width of the residual stream.
        num_heads: heads of queries.
        num_key_heads: heads of keys and values, a divisor of `num_heads`: grouped-query attention.
            None: as many as queries have.
        head_dim: dimension of a head, even; with `rope: 2d` a multiple of 4. None: d_model /
            num_heads.
        d_ff: width of the feed-forward layer. None: 8/3 of `d_model`, rounded up to a multiple of
            256.
        rope: what queries and keys turn by: "1d" for the position in the sequence, "2d" for the row
            and the column of an image code in its picture, where queries and keys of all other
            tokens are zero (LlamaGen). With "2d" the order of a text's words counts for little: it
            is for pictures of a class.
        rope_theta: base of the rotation's wavelengths.
        norm_eps: added to the variance by every normalisation.
        qk_norm: normalisation of queries and keys over the head dimension: "none", "layer_norm"
            (with weight and bias: Chameleon) or "rms_norm" (Emu3.5, Qwen3).
        qk_norm_groups: number of such norms, each for as many adjacent heads: 1 for one that all
            heads share, the number of tensor-parallel ranks for weights that were trained so. None:
            one for each head.
        swin_norm: normalise what a branch returns and not what it takes (Chameleon 30B).
        qkv_bias: the projections to queries, keys and values have a bias (Qwen2).
        tie_embeddings: the output projection is the token embedding.
        code_embed_dim: dimensions of image codes' own embeddings, which two layers bring to `d_model`
            (Janus: 8). None: image codes are rows of the table and of the head, as other tokens are.
        code_head_dim: width between the two layers of image codes' own head (Janus: `d_model`); given
            together with `code_embed_dim`. In training, codes and other ids are then told apart by what
            is due: a loss is among codes, or among all others.
        dropout: of both residual branches in training.
        init_std: standard deviation of all matrices, truncated at 3 deviations; those that write
            to the residual stream are divided by sqrt(2 * num_layers).
        activation_checkpointing: recompute each block in the backward pass: less memory, a third
            more time.
        codebook_scale: standard deviation of image code embeddings initialised from the tokenizer's
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
    dropout: float = 0.0
    init_std: float = 0.02
    activation_checkpointing: bool = False
    codebook_scale: float = 1.0

    @property
    def key_heads(self) -> int:
        """Number of heads of keys and values."""
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
        """Whether image codes have embeddings and a head of their own."""
        return self.code_embed_dim is not None

    def norm_groups(self, num_heads: int) -> int:
        """Number of norms of `num_heads` heads of queries or keys."""
        return num_heads if self.qk_norm_groups is None else self.qk_norm_groups
