"""Condition `edges`: broad black lines on white, which survive an image tokenizer of few codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

from cm3core.interfaces.condition import Condition

if TYPE_CHECKING:
    from cm3core.document import PixelArray


class PlainEdges(Condition):
    """Where neighbouring pixels of the picture differ, after it is shrunk.

    Args:
        size: pixels of the shorter side that is looked at; a smaller picture is taken as it is.
        threshold: difference of grey values, of 255.
    """

    def __init__(self, size: int, threshold: float) -> None:
        self.size, self.threshold = size, threshold

    @property
    def fingerprint(self) -> str:
        return f"edges 1 {self.size} {self.threshold}"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        height, width = source.shape[:2]
        scale = min(1.0, self.size / min(height, width))
        small = Pillow.fromarray(source).resize(
            (round(width * scale), round(height * scale)), Pillow.Resampling.BOX
        )
        edges = Pillow.fromarray(edges_of(np.asarray(small), self.threshold))
        return np.asarray(edges.resize((width, height), Pillow.Resampling.NEAREST)).copy()


def edges_of(pixels: PixelArray, threshold: float = 64) -> PixelArray:
    """Black where neighbouring pixels differ by more than `threshold`, white elsewhere; uint8 [H, W, 3]."""
    grey = pixels.astype(np.int16).mean(2)
    down = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    right = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    lines = np.where(np.maximum(down, right) > threshold, 0, 255).astype(np.uint8)
    return np.repeat(lines[..., None], 3, axis=2)
