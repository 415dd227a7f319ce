"""Conditions without further packages: `as_is`, the picture itself; `edges`, broad black lines on white,
which survive image tokenizers with few codes; `boxes`, objects placed by a text.
"""

from __future__ import annotations

import colorsys
import hashlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from cm3core.boxes import MAX_COORDINATE, boxes_in
from cm3core.errors import DataError
from cm3core.interfaces.condition import Condition

if TYPE_CHECKING:
    import numpy as np

    from cm3core.document import PixelArray


class PictureAsItIs(Condition):
    """A copy of the picture."""

    @property
    def fingerprint(self) -> str:
        return "as_is 1"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        return source.copy()


class PlainEdges(Condition):
    """Edges between neighbouring pixels of the shrunk picture.

    Args:
        size: the picture is shrunk to this many pixels on its shorter side; smaller ones stay as they are.
        threshold: difference in grey value, 0 to 255.
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


class BoxPicture(Condition):
    """Filled rectangles on black, the smaller ones in front.

    Args:
        size: side in pixels.
    """

    draws_from = "text"

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def fingerprint(self) -> str:
        return f"boxes 1 {self.size}"

    def _draw(self, source: str, rng: np.random.Generator | None) -> PixelArray:
        objects = boxes_in(source)
        # half open: a box ends where its last pixel does
        scale = self.size / MAX_COORDINATE
        frames = []
        for label, (x0, y0, x1, y1) in objects:
            if not (x0 < x1 <= MAX_COORDINATE and y0 < y1 <= MAX_COORDINATE):
                raise DataError(
                    f"box of {label!r}",
                    f"({x0}, {y0}) -> ({x1}, {y1}) is empty or not within 0 to {MAX_COORDINATE}",
                    "give two corners, the upper left one first",
                )
            # a thin box at the right or lower edge keeps the last pixel
            left, top = (min(round(start * scale), self.size - 1) for start in (x0, y0))
            right, bottom = max(round(x1 * scale), left + 1), max(round(y1 * scale), top + 1)
            frames.append((label, (left, top, right - 1, bottom - 1)))
        # `boxes_in` skips malformed boxes, for texts of a model; a user gets an error
        if not frames or source.count("->") != len(frames):
            raise DataError(
                "condition",
                f"{source!r} has {source.count('->')} boxes, only {len(frames)} of them well formed",
                'write "bell at (10, 12) -> (40, 44), key at (0, 0) -> (9, 20)"',
            )
        frames.sort(key=lambda one: -_area(one[1]))
        picture = Pillow.new("RGB", (self.size, self.size))
        pen = ImageDraw.Draw(picture)
        for label, frame in frames:
            pen.rectangle(frame, fill=colour_of(label))
        return np.asarray(picture).copy()


def _area(frame: tuple[int, int, int, int]) -> int:
    return (frame[2] - frame[0] + 1) * (frame[3] - frame[1] + 1)


def colour_of(label: str) -> tuple[int, int, int]:
    """Return a bright colour that depends on the label alone, ignoring case."""
    digest = hashlib.sha256(label.strip().casefold().encode("utf-8", "surrogatepass")).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.5 + digest[4] / 510, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
