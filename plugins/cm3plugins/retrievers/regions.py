"""Parts of a picture that may show separate objects, found by recursive cuts along empty rows and columns.

Source: G. Nagy, S. Seth, "Hierarchical representation of optically scanned documents" (1984), the X-Y cut.

Legend: H, W of a picture, N nodes of its tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3core.boxes import MAX_COORDINATE
from cm3core.document import Document, Image, PixelArray
from cm3core.images import fit
from cm3core.interfaces.retriever import Region

#: Pictures are resized to this side before they are cut.
SIDE = 128
#: A pixel that differs from the background by at least this much (of 255) is ink.
_INK = 48
#: A part smaller than this share of the side is not an object.
_SMALLEST = 0.12
#: Margin around a part's ink, in pixels at `SIDE`.
_MARGIN_PIXELS = 4
#: A picture with a nearest document more similar than this shows a single object.
KNOWN = 0.8
#: The parts must match this much better than the whole, so that an object of several strokes is not cut.
MARGIN = 0.02

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a picture.

    Args:
        box: around its ink, (x0, y0, x1, y1) in pixels at `SIDE`, half open.
        children: the two parts on either side of its widest gap; none if there is no gap.
    """

    box: Box
    children: tuple[Part, ...] = ()

    @property
    def area(self) -> int:
        """Pixels of the box."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def region(self) -> Region:
        """The box in the coordinates of the picture that a model sees (`cm3core.boxes`)."""
        x0, y0, x1, y1 = (round(MAX_COORDINATE * value / SIDE) for value in self.box)
        return x0, y0, x1, y1

    def nodes(self) -> list[Part]:
        """The part itself and all parts below it."""
        return [self, *(node for child in self.children for node in child.nodes())]


def seen(pixels: PixelArray) -> PixelArray:
    """The picture to cut: its largest centred square, which a model sees, resized to `SIDE`."""
    return fit(pixels, (SIDE, SIDE))


def parts_of(square: PixelArray, most: int) -> Part | None:
    """The tree of a picture's parts; None for a picture without ink.

    Args:
        square: uint8 [SIDE, SIDE, 3].
        most: maximum number of parts, which limits the depth.
    """
    far = np.abs(square.astype(np.float32) - _background(square)) > _INK
    ink = (
        far[..., 0] | far[..., 1] | far[..., 2]
    )  # four times as fast as any() along so short an axis
    return _cut(ink, (0, 0, square.shape[1], square.shape[0]), (most - 1).bit_length())


def cropped(square: PixelArray, part: Part) -> Document:
    """A document of a part's pixels, centred on a square of background.

    An embedder sees the largest centred square, which would cut off the ends of a long part, and takes the border for the
    background, which fails where ink touches it.
    """
    x0, y0, x1, y1 = part.box
    width, height = x1 - x0, y1 - y0
    side = max(width, height) + 2 * _MARGIN_PIXELS
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = _background(square).astype(np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    pixels[top : top + height, left : left + width] = square[y0:y1, x0:x1]
    return (Image(f"part {part.box}", lambda: pixels),)


def explained(whole: Part, scores: Sequence[float], most: int) -> list[int]:
    """Choose the parts that match the memory best: their numbers in `whole.nodes()`, from left to right.

    A part is cut if its two parts, weighted by area, match more than `MARGIN` better than the part itself.

    Args:
        whole: a picture's tree.
        scores: similarity of each node's nearest document.
        most: a picture with more parts than this is left whole.
    """
    nodes = whole.nodes()
    number = {id(node): place for place, node in enumerate(nodes)}

    def best(node: Part) -> tuple[float, list[Part]]:
        own = scores[number[id(node)]]
        if not node.children:
            return own, [node]
        found = [best(child) for child in node.children]
        weights = [child.area for child in node.children]
        cut = float(np.average([value for value, _ in found], weights=weights))
        if cut <= own + MARGIN:
            return own, [node]
        return cut, [part for _, parts in found for part in parts]

    chosen = best(whole)[1]
    if len(chosen) > most:
        return [0]
    return [number[id(part)] for part in sorted(chosen, key=lambda part: part.box)]


def _background(square: PixelArray) -> npt.NDArray[np.float32]:
    """The border's median colour, [3]."""
    border = np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]])
    median: npt.NDArray[np.float32] = np.median(border, axis=0).astype(np.float32)
    return median


def _cut(ink_HW: npt.NDArray[np.bool_], within: Box, depth: int) -> Part | None:
    x0, y0, x1, y1 = within
    own = ink_HW[y0:y1, x0:x1]
    columns, rows = np.flatnonzero(own.any(0)), np.flatnonzero(own.any(1))
    if not len(columns):
        return None
    box = (
        x0 + int(columns[0]),
        y0 + int(rows[0]),
        x0 + int(columns[-1]) + 1,
        y0 + int(rows[-1]) + 1,
    )
    if depth == 0:
        return Part(box)
    width, at, across = max(
        (*_widest(lines), across) for across, lines in ((0, columns), (1, rows))
    )
    if width == 0:
        return Part(box)
    x, y = x0 + at, y0 + at
    halves = (
        [(box[0], box[1], x, box[3]), (x, box[1], box[2], box[3])]
        if across == 0
        else [(box[0], box[1], box[2], y), (box[0], y, box[2], box[3])]
    )
    children = [_cut(ink_HW, half, depth - 1) for half in halves]
    whole = [child for child in children if child is not None]
    least = _SMALLEST * SIDE
    if any(max(c.box[2] - c.box[0], c.box[3] - c.box[1]) < least for c in whole):
        return Part(box)
    return Part(box, tuple(whole))


def _widest(lines: npt.NDArray[np.int64]) -> tuple[int, int]:
    """The width of the widest gap between lines with ink, and where it begins; (0, 0) if there is none.

    >>> _widest(np.array([1, 2, 6, 7, 9]))
    (3, 3)
    """
    gaps = np.diff(lines) - 1
    if not len(gaps) or not gaps.max():
        return 0, 0
    place = int(gaps.argmax())
    return int(gaps[place]), int(lines[place]) + 1
