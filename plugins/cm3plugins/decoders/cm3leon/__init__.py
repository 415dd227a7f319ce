"""Config of `cm3leon`, the paper's decoder. Light: no torch here; the model is in `model.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError, close_match
from cm3core.interfaces import TrainingMemory, TrainingPass
from cm3core.interfaces.decoder import (
    LOSS_CHUNK_BYTES,
    LOSS_CHUNK_BYTES_ON_GPU,
    DecoderConfig,
)
from cm3core.vocab import Vocabulary
from cm3plugins.decoders.axes import check_axes
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend
    from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder

ACTIVATIONS = ("relu", "gelu")
#: Far above any real model; the modules of very many narrow layers would exhaust memory even
#: if their weights fit.
MAX_LAYERS = 10_000


@dataclass(kw_only=True)
class CM3LeonConfig(CM3LeonSettings, DecoderConfig):
    """An OPT-style pre-LN decoder without biases and without learnable normalisation.

    CM3leon paper, section 2.3. The defaults are the paper's 350M model; other sizes need only other
    values.
    """

    builds_without_weights: ClassVar[bool] = True
    training_keys: ClassVar[tuple[str, ...]] = (
        "dropout",
        "activation_checkpointing",
        "init_std",
        "codebook_scale",
        "position_init_std",
    )
    later_keys: ClassVar[tuple[str, ...]] = ("code_axes", "token_shift")
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "num_layers": (1, MAX_LAYERS),
        "context_length": (1, 2**24),
        "d_model": (1, 2**20),
        "num_heads": (1, 2**20),
        "d_ff": (1, 2**24),
        "init_std": (0, 1e3),
        "position_init_std": (0, 1e3),
        "codebook_scale": (0, 1e6),
    }

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        if self.d_model % self.num_heads:
            raise RecipeError(
                "decoder.num_heads",
                f"{self.num_heads} heads don't divide d_model = {self.d_model}",
                "choose a divisor; a head dimension of 32 to 128 is usual",
            )
        if self.activation not in ACTIVATIONS:
            raise RecipeError(
                "decoder.activation",
                f"{self.activation!r} is not known",
                close_match(self.activation, ACTIVATIONS),
            )
        if not 0.0 <= self.dropout < 1.0:
            raise RecipeError(
                "decoder.dropout", f"is {self.dropout}, must be in [0, 1)", "the paper uses 0"
            )
        for name in ("init_std", "position_init_std", "codebook_scale"):
            if not getattr(self, name) > 0.0:
                raise RecipeError(
                    f"decoder.{name}",
                    f"is {getattr(self, name)}, must be positive",
                    "the defaults are the paper's values",
                )
        if self.code_axes:
            check_axes(self.code_axes)

    def position_axes(self) -> Mapping[str, int]:
        """`code_axes`."""
        return self.code_axes

    def attention_head_dim(self) -> int:
        """`d_model` / `num_heads`."""
        return self.d_model // self.num_heads

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int:
        """Compute the number of parameters of the decoder that `build` returns."""
        width, inner = self.d_model, 4 * self.d_model if self.d_ff is None else self.d_ff
        layer = (
            4 * width * width
            + 2 * width * inner
            + (2 * width // self.num_heads if self.qk_norm else 0)
            + (width if self.token_shift else 0)
        )
        rows = vocabulary.size * (1 if self.tie_embeddings else 2) + self.context_length
        rows += (sum(grid) if self.grid_positions else 0) + sum(self.code_axes.values())
        return rows * width + self.num_layers * layer

    def training_memory(
        self, vocabulary: Vocabulary, grid: tuple[int, int], one_pass: TrainingPass
    ) -> TrainingMemory:
        """Estimate the activations that autograd keeps per layer (see `model.py`), and the memory of the head's loss."""
        width, inner = self.d_model, self.d_ff or 4 * self.d_model
        tokens, size = one_pass.rows * one_pass.length, one_pass.itemsize
        # two residual sums in float32; both norms, queries, keys, values and the output, which packed
        # documents keep twice
        kept = tokens * width * (2 * 4 + 7 * size)
        kept += tokens * inner * size * (1 if self.activation == "relu" else 2)
        kept += tokens * width * 2 * size * (self.qk_norm + self.token_shift)
        kept += tokens * width * 2 if self.dropout else 0
        if one_pass.attention is not None:
            kept += one_pass.attention.for_device(one_pass.device).kept_bytes(
                one_pass.rows, one_pass.length, self.num_heads, size
            )
        if self.activation_checkpointing:
            activations, working = self.num_layers * tokens * width * 4, kept
        else:
            activations, working = self.num_layers * kept, 0
        working += tokens * (2 * inner + 4 * width) * 4
        # logits, and a separate gradient where dtypes differ; two gradients of the head
        chunk = LOSS_CHUNK_BYTES if one_pass.device == "cpu" else LOSS_CHUNK_BYTES_ON_GPU
        logits = min(chunk, 4 * tokens * vocabulary.size)
        working += (1 if size == 4 else 2) * logits + 2 * 4 * vocabulary.size * width
        matrices = self.num_layers * (4 * width * width + 2 * width * inner)
        others = self.num_parameters(vocabulary, grid) - matrices
        return TrainingMemory(
            matrix_parameters=matrices,
            other_parameters=others,
            gathered=others + min(2, self.num_layers) * (matrices // self.num_layers),
            linear_features=self.num_layers * (8 * width + 2 * (width + inner)),
            largest_stack=self.num_layers * width * max(4 * width, inner),
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

    def cache_bytes(self, num_tokens: int, itemsize: int) -> int:
        """Bytes of a key and a value of width `d_model` per layer, and of its input with `token_shift`."""
        return (
            (3 if self.token_shift else 2) * num_tokens * self.num_layers * self.d_model * itemsize
        )

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> CM3LeonDecoder:
        """Return the decoder, initialised from torch's global generator on torch's default device."""
        from cm3plugins.decoders.cm3leon.model import CM3LeonDecoder

        self.check()
        return CM3LeonDecoder(self, vocabulary.size, attention, grid)
