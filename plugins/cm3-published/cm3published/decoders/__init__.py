"""Config of `glm_image`, the decoder of GLM-Image. Light: the model is in `glm_image.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cm3core.errors import RecipeError
from cm3core.interfaces.component import check_value
from cm3plugins.decoders.llama import LlamaConfig

if TYPE_CHECKING:
    from cm3core.interfaces.attention import AttentionBackend
    from cm3core.vocab import Vocabulary
    from cm3published.decoders.glm_image import GlmImageDecoder


@dataclass(kw_only=True)
class GlmImageDecoderConfig(LlamaConfig):
    """GLM-Image's decoder: `llama` with norms at the end of each branch too, rotation by the place of a code in one of
    several grids, and a head for image codes alone.

    A token's position has three parts, all equal to its place in the sequence unless it is an image code. For a code they
    are the start of its grid, and that plus its row and its column; a grid starts after the longest side of the one before
    it. Sizes of a checkpoint: transformers' `GlmImageTextConfig`.

    Args:
        grids: (rows, columns) of the grids of a picture, in the order of their codes; together as many codes as the
            image tokenizer's.
        sections: numbers of rotated pairs of dimensions, by the first, second and third part of the position; the other
            pairs are not rotated.
        head_ids: rows of the head, for the first ids. All other ids have the logit 0, and their loss is constant: texts
            are read, but not learnt or written.
    """

    not_in_outputs: ClassVar[tuple[str, ...]] = ("codebook_scale",)
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **LlamaConfig.ranges,
        "head_ids": (1, 2**24),
    }

    norm_eps: float = 1e-5
    qk_norm: str = "none"
    qkv_bias: bool = True
    grids: list[list[int]] = field(default_factory=lambda: [[16, 16], [32, 32]])
    sections: list[int] = field(default_factory=lambda: [8, 12, 12])
    head_ids: int = 16_512

    def check(self) -> None:
        """Check ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        sound = bool(self.grids) and all(len(one) == 2 and min(one) > 0 for one in self.grids)
        check_value(
            "decoder.grids", self.grids, sound, must_be="a list of [rows, columns], at least 1 each"
        )
        fits = len(self.sections) == 3 and min(self.sections) >= 0
        most = self.head_size // 2
        check_value(
            "decoder.sections",
            self.sections,
            fits and 0 < sum(self.sections) <= most,
            must_be=f"three numbers, together at most {most}, half a head's dimensions",
        )
        for key, only in _FIXED.items():
            value = getattr(self, key)
            check_value(f"decoder.{key}", value, value == only, must_be=f"{only!r} (GLM-Image)")

    def check_pictures(self, grid: tuple[int, int], codebook_size: int) -> None:
        """Raise `RecipeError` unless `grids` have as many codes together as a picture."""
        number = sum(rows * columns for rows, columns in self.grids)
        if number != grid[0] * grid[1]:
            raise RecipeError(
                "decoder.grids",
                f"have {number:,} codes together, but the image tokenizer's pictures have {grid[0] * grid[1]:,}",
                "give the grids of the preview and of the picture",
            )

    def num_parameters(self, vocabulary: Vocabulary, grid: tuple[int, int]) -> int:
        """Compute the number of parameters of the decoder that `build` returns."""
        left = (vocabulary.size - self.head_ids) * self.d_model
        return super().num_parameters(vocabulary, grid) - left + 2 * self.num_layers * self.d_model

    def build(
        self, vocabulary: Vocabulary, attention: AttentionBackend, grid: tuple[int, int]
    ) -> GlmImageDecoder:
        """Return the decoder, initialised from torch's global generator on torch's default device."""
        from cm3published.decoders.glm_image import GlmImageDecoder

        self.check()
        self.check_pictures(grid, len(vocabulary.image))
        if not vocabulary.image.stop <= self.head_ids < vocabulary.size:
            raise RecipeError(
                "decoder.head_ids",
                f"is {self.head_ids:,}, but image codes end at {vocabulary.image.stop:,} of {vocabulary.size:,} ids",
                "give a number in between",
            )
        return GlmImageDecoder(self, vocabulary.size, attention, grid, vocabulary.image)


#: Options of `llama` that this decoder doesn't have -> their only value.
_FIXED: Mapping[str, object] = {
    "rope": "1d",
    "swin_norm": False,
    "tie_embeddings": False,
    "token_shift": False,
    "code_embed_dim": None,
    "code_axes": {},
}
