"""Config of `llama`, the architecture of most public models. Light: the model is in `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces import TrainingMemory, TrainingPass
from cm3core.interfaces.component import check_value
from cm3core.interfaces.decoder import (
    LOSS_CHUNK_BYTES,
    LOSS_CHUNK_BYTES_ON_GPU,
    DecoderConfig,
)
from cm3core.vocab import Vocabulary
from cm3plugins.decoders.axes import check_axes
from cm3plugins.decoders.llama.settings import LlamaSettings

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend
    from cm3plugins.decoders.llama.model import LlamaDecoder

ROPES = ("1d", "2d")
QK_NORMS = ("none", "layer_norm", "rms_norm")


@dataclass(kw_only=True)
class LlamaConfig(LlamaSettings, DecoderConfig):
    """RMSNorm, SwiGLU, rotary positions, grouped-query attention (Llama, Chameleon, Qwen).

    No learned positions; `rope: 2d` rotates by a picture's rows and columns (LlamaGen). The defaults have Chameleon's norms
    and the size of the paper's 350M model; other models need only other values.
    """

    builds_without_weights: ClassVar[bool] = True
    training_keys: ClassVar[tuple[str, ...]] = (
        "dropout",
        "activation_checkpointing",
        "init_std",
        "codebook_scale",
    )
    later_keys: ClassVar[tuple[str, ...]] = ("code_axes", "token_shift")
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_layers": (1, 10_000),
        "context_length": (1, 2**24),
        "d_model": (1, 2**20),
        "num_heads": (1, 2**20),
        "num_key_heads": (1, 2**20),
        "head_dim": (2, 2**16),
        "qk_norm_groups": (1, 2**20),
        "d_ff": (1, 2**24),
        "code_embed_dim": (1, 2**20),
        "code_head_dim": (1, 2**20),
        "rope_theta": (1, 1e12),
        "norm_eps": (1e-12, 1),
        "init_std": (1e-9, 1e3),
        "codebook_scale": (1e-9, 1e6),
    }

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        if self.head_dim is None and self.d_model % self.num_heads:
            raise RecipeError(
                "decoder.num_heads",
                f"{self.num_heads} heads don't divide d_model = {self.d_model}",
                "choose a divisor, or set decoder.head_dim",
            )
        check_value(
            "decoder.head_dim",
            self.head_size,
            self.head_size % 2 == 0,
            must_be="even, for rotary positions",
        )
        if self.rope not in ROPES:
            raise RecipeError(
                "decoder.rope", f"{self.rope!r} is not known", close_match(self.rope, ROPES)
            )
        check_value(
            "decoder.head_dim",
            self.head_size,
            self.rope == "1d" or self.head_size % 4 == 0,
            must_be="a multiple of 4: half of it rotates by the row, half by the column",
        )
        if self.num_heads % self.key_heads:
            raise RecipeError(
                "decoder.num_key_heads",
                f"{self.key_heads} key heads don't divide {self.num_heads} heads",
                "choose a divisor, so that each key head serves as many query heads",
            )
        if self.qk_norm not in QK_NORMS:
            raise RecipeError(
                "decoder.qk_norm",
                f"{self.qk_norm!r} is not known",
                close_match(self.qk_norm, QK_NORMS),
            )
        if self.key_heads % self.norm_groups(self.key_heads):
            raise RecipeError(
                "decoder.qk_norm_groups",
                f"{self.qk_norm_groups} norms don't divide {self.key_heads} key heads",
                "choose a divisor: each norm serves as many heads",
            )
        check_value(
            "decoder.code_head_dim",
            self.code_head_dim,
            (self.code_head_dim is None) == (self.code_embed_dim is None),
            must_be="set together with decoder.code_embed_dim",
        )
        check_value("decoder.dropout", self.dropout, 0.0 <= self.dropout < 1.0, must_be="in [0, 1)")
        if self.code_axes:
            check_axes(self.code_axes)
        check_value(
            "decoder.token_shift",
            self.token_shift,
            not self.token_shift or self.key_heads * self.head_size == self.d_model,
            must_be="false, unless decoder.num_key_heads * decoder.head_dim is decoder.d_model",
        )

    def position_axes(self) -> Mapping[str, int]:
        """`code_axes`."""
        return self.code_axes

    def _matrices(self) -> int:
        """Number of parameters in the matrices of all layers."""
        width, head = self.d_model, self.head_size
        attention = 2 * width * head * (self.num_heads + self.key_heads)
        return self.num_layers * (attention + 3 * width * self.inner)

    def attention_head_dim(self) -> int:
        """`head_dim`, or `d_model` / `num_heads`."""
        return self.head_size

    def cache_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Bytes of a key and a value of each key head per layer, and of its input with `token_shift`."""
        number = 3 if self.token_shift else 2
        return number * num_tokens * self.num_layers * self.key_heads * self.head_size * itemsize

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int:
        """Compute the number of parameters of the decoder that `build` returns."""
        heads = self.num_heads, self.key_heads
        small = (3 if self.token_shift else 2) * self.d_model
        if self.qk_norm != "none":
            vectors = sum(self.norm_groups(number) for number in heads) * self.head_size
            small += vectors * (2 if self.qk_norm == "layer_norm" else 1)
        if self.qkv_bias:
            small += (self.num_heads + 2 * self.key_heads) * self.head_size
        rows, own = vocabulary.size, 0
        if self.code_embed_dim is not None and self.code_head_dim is not None:
            codes, width, inner = len(vocabulary.image), self.d_model, self.code_head_dim
            rows -= codes
            own = self.code_embed_dim * (codes + width) + width * (width + 2)
            own += inner * (width + 1) + codes * (inner + 1)
        rows = rows * (1 if self.tie_embeddings else 2) + sum(self.code_axes.values())
        return own + rows * self.d_model + self._matrices() + self.num_layers * small + self.d_model

    def training_memory(
        self, vocabulary: Vocabulary, grid: tuple[int, int], one_pass: TrainingPass
    ) -> TrainingMemory:
        """Estimate the activations that autograd keeps per layer (see `model.py`), and the memory of the head's loss."""
        width, inner = self.d_model, self.inner
        queries, keys = self.num_heads * self.head_size, self.key_heads * self.head_size
        tokens, size = one_pass.rows * one_pass.length, one_pass.itemsize
        # two residual sums and both norms' inputs in float32; queries and keys before and after the
        # rotation, values and the output, which packed documents keep twice
        kept = tokens * width * (4 * 4 + 2 * size)
        kept += tokens * (3 * queries + 5 * keys + queries) * size
        if self.qk_norm != "none":
            kept += tokens * (queries + keys) * 4
        # gate, its SiLU, up and their product
        kept += tokens * inner * 4 * size
        kept += tokens * width * 2 * size if self.token_shift else 0
        kept += tokens * width * 2 if self.dropout else 0
        if one_pass.attention is not None:
            kept += one_pass.attention.for_device(one_pass.device).kept_bytes(
                one_pass.rows, one_pass.length, self.num_heads, size
            )
        if self.activation_checkpointing:
            activations, working = self.num_layers * tokens * width * 4, kept
        else:
            activations, working = self.num_layers * kept, 0
        working += tokens * (3 * inner + 4 * width) * 4
        chunk = LOSS_CHUNK_BYTES if one_pass.device == "cpu" else LOSS_CHUNK_BYTES_ON_GPU
        logits = min(chunk, 4 * tokens * vocabulary.size)
        working += (1 if size == 4 else 2) * logits + 2 * 4 * vocabulary.size * width
        return TrainingMemory(
            matrix_parameters=self._matrices(),
            other_parameters=self.num_parameters(vocabulary, grid) - self._matrices(),
            linear_features=self.num_layers
            * (2 * (width + queries) + 2 * (width + keys) + 3 * (width + inner)),
            largest_stack=self.num_layers * width * max(queries, inner),
            activations=activations + 3 * 4 * tokens * width,
            working=working,
            smaller=(
                *(
                    ()
                    if self.activation_checkpointing
                    else ("decoder.activation_checkpointing=true",)
                ),
                "decoder.context_length",
            ),
            smaller_model=("decoder.num_layers", "decoder.d_model"),
        )

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> LlamaDecoder:
        """Return the decoder, initialised from torch's global generator on torch's default device."""
        from cm3plugins.decoders.llama.model import LlamaDecoder

        self.check()
        return LlamaDecoder(self, vocabulary.size, attention, grid, vocabulary.image)
