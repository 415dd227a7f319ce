"""Parts of a small model, for kits of components that are built for one: its image tokenizer knows a
few greys, its memory holds pictures of their codes."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch

from cm3core.document import Codes, IntArray, PixelArray, Text
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.interfaces.sampler import ModelParts
from cm3core.vocab import Vocabulary
from cm3kits.samples import ListSource


class GreySquares(ImageTokenizer):
    """One code per pixel: the nearest of evenly spaced greys."""

    def __init__(self, grid: tuple[int, int], codebook_size: int) -> None:
        self._grid, self._codebook_size = grid, codebook_size

    @property
    def image_size(self) -> tuple[int, int]:
        """A pixel for each code."""
        return self._grid

    @property
    def grid(self) -> tuple[int, int]:
        """As given."""
        return self._grid

    @property
    def codebook_size(self) -> int:
        """As given."""
        return self._codebook_size

    @property
    def fingerprint(self) -> str:
        """Of its sizes."""
        return f"grey squares {self._grid} {self._codebook_size}"

    def codebook(self) -> torch.Tensor:
        """The greys, 0..1, float32 [codebook_size, 1]."""
        return torch.linspace(0, 1, self._codebook_size)[:, None]

    @cached_property
    def _greys(self) -> IntArray:
        return np.linspace(0, 255, self._codebook_size).round().astype(np.int32)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        grey_Nc = pixels_NHWC.astype(np.int32).mean(axis=3).reshape(len(pixels_NHWC), -1)
        nearest_Nc: IntArray = np.abs(grey_Nc[:, :, None] - self._greys).argmin(2).astype(np.int32)
        return nearest_Nc

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        grey_NHW = self._greys[codes_Nc].astype(np.uint8).reshape(-1, *self._grid)
        return np.repeat(grey_NHW[..., None], 3, axis=3)


def example_parts(
    *, grid: tuple[int, int], num_codes: int, first_code: int, num_pictures: int = 12
) -> ModelParts:
    """A model's parts.

    Args:
        grid: of its pictures.
        num_codes: of its image tokenizer.
        first_code: id of image code 0.
        num_pictures: in its memory.
    """
    codes_Nc = np.random.default_rng(0).integers(
        0, num_codes, (num_pictures, grid[0] * grid[1]), np.int32
    )
    memory = ListSource(
        [(Text(f"picture {i}"), Codes(codes, grid)) for i, codes in enumerate(codes_Nc)]
    )
    codes = range(first_code, first_code + num_codes)
    vocabulary = Vocabulary(codes.stop, (range(1, first_code),), codes, {"pad": 0}, first_text=1)
    return ModelParts(GreySquares(grid, num_codes), vocabulary, lambda: memory)
