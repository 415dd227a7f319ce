"""How near one picture is to another, regardless of position and scale: distinguishes a result that repeats a document
from one that only resembles it.

Ink is what differs from the background, which is the median colour of the picture's frame. The bounding box of the ink
is fitted into a common square, keeping its aspect ratio. Nearness is the smaller of two soft intersections over unions
(sum of minima over sum of maxima): that of the inks, and that of their contours, which are where a place has more or
less ink than its surroundings. With ink alone, a filled disc with a cross would equal one with a tick.

- Icons: how much of both drawings' ink coincides. White on black is as near as black on white, and the same shape in
  another colour is nearly as near as in the same colour: both count as copies.
- Coloured pictures on a plain background: the shape, and the strength of the colours, but not their hue.
- Photographs have no background. The comparison is of each place's distance from the colour of the frame: equal
  pictures have 1, near-copies nearly 1, and different pictures much less; between these the number says little.

Of 400 icons, 92% are near-copies of their reconstruction by the bundled image tokenizer; of 400 pairs of different
filled icons of one set that both have a circle or a square, 1.8% are; of pairs of icons of different objects, none
(`python docs/_nearness.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cm3core.document import PixelArray

#: Smallest nearness of a near-copy.
NEARLY_A_COPY = 0.8
#: Side of the square in which inks are compared, and the margin on each side, in its pixels. In finer squares, thin
#: lines half a pixel apart would have little in common.
_SIDE, _AROUND = 32, 2
#: Reach of the surroundings, in pixels of the square.
_SURROUNDINGS = 4
#: Weaker differences are not ink: image tokenizers decode plain areas with some noise. 0..255.
FAINT = 25


def nearness(first: PixelArray, second: PixelArray) -> float:
    """Return how near two pictures are, 0..1; symmetric, and 1 for equal ones.

    The same drawing at another position or scale has nearly 1, as far as pixels allow. Blank pictures are near to each
    other and to no others.

    Args:
        first, second: uint8 [height, width, 3], of any sizes.

    >>> square, wide = np.full((8, 8, 3), 255, np.uint8), np.full((20, 20, 3), 255, np.uint8)
    >>> square[2:6, 2:6], wide[1:9, 3:19] = 0, 0
    >>> nearness(square, square[1:, 1:]), round(nearness(square, wide), 1)
    (1.0, 0.1)
    """
    return Shape(first).nearness(Shape(second))


class Shape:
    """A picture as `nearness` compares it, for pictures that are compared more than once.

    Args:
        picture: uint8 [height, width, 3], of any size.

    >>> page = np.full((8, 8, 3), 255, np.uint8)
    >>> page[2:6, 2:6] = 0
    >>> Shape(page).nearness(Shape(page[1:, 1:]))
    1.0
    """

    def __init__(self, picture: PixelArray) -> None:
        placed = _placed(ink_of(picture))
        # values are 0 to 255: bytes, of which thousands of pictures fit
        both = () if placed is None else (placed, _contours(placed))
        #: Ink and contours; none of a blank picture.
        self.parts = [part.astype(np.uint8) for part in both]

    def nearness(self, other: Shape) -> float:
        """Return how near two pictures are, see `nearness`."""
        if not self.parts or not other.parts:
            return float(not self.parts and not other.parts)
        return min(map(_shared, self.parts, other.parts))


def is_blank(picture: PixelArray) -> bool:
    """Whether a picture uint8 [height, width, 3] has no ink: nothing that differs from its background by more than noise.

    >>> page = np.full((8, 8, 3), 255, np.uint8)
    >>> page[4, 4] = 240
    >>> is_blank(page), is_blank(np.pad(page[:4], ((0, 4), (0, 0), (0, 0))))
    (True, False)
    """
    return _placed(ink_of(picture)) is None


class Nearest:
    """Finds the greatest nearness of a picture to any of many, which `nearness` would find one by one.

    Args:
        pictures: uint8 [height, width, 3] each, of any sizes.

    >>> square, wide = np.full((8, 8, 3), 255, np.uint8), np.full((20, 20, 3), 255, np.uint8)
    >>> square[2:6, 2:6], wide[1:9, 3:19] = 0, 0
    >>> Nearest([square, wide])(square[1:, 1:]), Nearest([])(square)
    (1.0, 0.0)
    """

    def __init__(self, pictures: Iterable[PixelArray]) -> None:
        parts = [Shape(one).parts for one in pictures]
        drawn = [one for one in parts if one]
        self._has_blank = len(drawn) < len(parts)
        self._rows = [np.stack([one.ravel() for one in own]) for own in zip(*drawn, strict=True)]
        self._sums = [own.sum(axis=1, dtype=np.int64) for own in self._rows]

    def __call__(self, picture: PixelArray) -> float:
        """Of a picture uint8 [height, width, 3]; 0 if there are none."""
        parts = Shape(picture).parts
        if not parts or not self._rows:
            return float(not parts and self._has_blank)
        shares = []
        for rows, sums, own in zip(self._rows, self._sums, parts, strict=True):
            flat = own.ravel()
            both = np.minimum(rows, flat).sum(axis=1, dtype=np.int64)
            either = sums + int(own.sum()) - both
            shares.append(np.where(either > 0, both / np.maximum(either, 1), 1.0))
        return float(np.minimum(*shares).max())


def placed_ink(pixels: PixelArray, side: int) -> NDArray[np.uint8]:
    """Return a picture's ink with its bounding box fitted into the middle of a square, as `nearness` compares it.

    Args:
        pixels: uint8 [height, width, 3], of any size.
        side: of the square, in pixels; 2 on each side stay free.

    Returns:
        uint8 [side, side], 255 where the ink is strongest; all zeros for a blank picture.

    >>> page = np.full((8, 8, 3), 255, np.uint8)
    >>> page[1:3, 1:3] = 200
    >>> placed_ink(page, 8)[3:5, 3:5].tolist(), int(placed_ink(page, 8)[0].max())
    ([[255, 255], [255, 255]], 0)
    """
    placed = _placed(ink_of(pixels), side - 2 * _AROUND)
    if placed is None:
        return np.zeros((side, side), np.uint8)
    return (placed * 255 // max(1, int(placed.max()))).astype(np.uint8)


def background(pixels: PixelArray) -> NDArray[np.int16]:
    """The background colour of a picture uint8 [height, width, 3], int16 [3]: the median of its frame.

    >>> page = np.full((4, 4, 3), 250, np.uint8)
    >>> page[1:3, 1:3] = 0
    >>> background(page).tolist()
    [250, 250, 250]
    """
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour: NDArray[np.int16] = np.median(frame, axis=0).astype(np.int16)
    return colour


def _shared(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """The sum of minima over the sum of maxima.

    >>> _shared(np.array([3, 1, 0], np.uint8), np.array([1, 1, 2], np.uint8))
    0.3333333333333333
    """
    either = int(np.maximum(one, other).sum(dtype=np.int64))
    return int(np.minimum(one, other).sum(dtype=np.int64)) / either if either else 1.0


def _contours(ink: NDArray[np.int64]) -> NDArray[np.int64]:
    """How much more and how much less ink each place has than its surroundings: [2, height, width]."""
    around = Image.fromarray(ink.astype(np.uint8)).filter(ImageFilter.BoxBlur(_SURROUNDINGS))
    more = ink - np.asarray(around)
    return np.stack([np.maximum(more, 0), np.maximum(-more, 0)])


def ink_of(pixels: PixelArray) -> NDArray[np.uint8]:
    """Distance of each pixel from the background, [height, width]: 0, or more than `FAINT`, up to 255."""
    far = np.abs(pixels.astype(np.int16) - background(pixels)).max(axis=2)
    return np.where(far > FAINT, far, 0).astype(np.uint8)


def _placed(ink: NDArray[np.uint8], inner: int = _SIDE) -> NDArray[np.int64] | None:
    """The ink with its bounding box fitted into the middle of the square, whose side is `inner` and the margins;
    None: no ink.

    Uses integers, so that sums don't depend on their order.
    """
    if not ink.any():
        return None
    full = int(ink.max())
    (top, bottom), (left, right) = _ends(ink.max(axis=1), full), _ends(ink.max(axis=0), full)
    half = max(bottom - top, right - left) / 2 * (1 + 2 * _AROUND / inner)
    row, column = (top + bottom) / 2, (left + right) / 2
    beyond = max(half - row, half - column, row + half - ink.shape[0], column + half - ink.shape[1])
    pad = max(0, math.ceil(beyond))
    box = (column - half + pad, row - half + pad, column + half + pad, row + half + pad)
    side = inner + 2 * _AROUND
    picture = Image.fromarray(np.pad(ink, pad))
    placed = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(placed).astype(np.int64)


def _ends(most: NDArray[np.uint8], full: int) -> tuple[float, float]:
    """Where ink begins and ends along an axis; a faint row at an edge counts as partly covered.

    >>> _ends(np.array([0, 100, 200, 200, 50, 0], np.uint8), 200)
    (1.5, 4.25)
    """
    inked = np.flatnonzero(most)
    first, last = int(inked[0]), int(inked[-1])
    start, stop = first + 1 - int(most[first]) / full, last + int(most[last]) / full
    return (start, stop) if start < stop else (float(first), float(last + 1))
