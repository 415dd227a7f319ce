"""How well a picture keeps to what it was drawn after: edges, and ink at boxes. Legend: H, W of a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cm3core.document import PixelArray

Bools = NDArray[np.bool_]
#: Pixels that two edges may be apart.
TOLERANCE = 1
#: Difference from white, of 255, from which on a pixel is ink.
_INK = 48


def edge_f1(found_HW: Bools, wanted_HW: Bools, tolerance: int = TOLERANCE) -> float:
    """F1 of the found edges: an edge is right if a wanted one is at most `tolerance` pixels away, and a
    wanted one is found if an edge is as near (as in the BSDS boundary benchmark, without matching).

    >>> one = np.eye(8, dtype=bool)
    >>> edge_f1(one, np.roll(one, 1, axis=1)), edge_f1(one, ~np.ones((8, 8), bool))
    (1.0, 0.0)
    """
    if not found_HW.any() or not wanted_HW.any():
        return float(found_HW.any() == wanted_HW.any())
    precision = float(widened(wanted_HW, tolerance)[found_HW].mean())
    recall = float(widened(found_HW, tolerance)[wanted_HW].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def widened(mask_HW: Bools, by: int) -> Bools:
    """The mask and all pixels at most `by` rows and columns away."""
    height, width = mask_HW.shape
    padded = np.pad(mask_HW, by)
    steps = range(2 * by + 1)
    parts = [padded[y : y + height, x : x + width] for y in steps for x in steps]
    whole: Bools = np.logical_or.reduce(parts)
    return whole


def ink(pixels: PixelArray) -> Bools:
    """Where a picture on white has something, bool [H, W]."""
    marks: Bools = (255 - pixels.astype(np.int16)).max(2) > _INK
    return marks


def frame_of(mask_HW: Bools) -> tuple[int, int, int, int] | None:
    """The smallest box (x0, y0, x1, y1), half open, around what is True; None if nothing is."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def iou(one: Sequence[float] | None, other: Sequence[float] | None) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 if one is missing.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2)), iou(None, (0, 0, 1, 1))
    (0.3333333333333333, 0.0)
    """
    if one is None or other is None:
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return float(shared / (areas - shared)) if areas > shared else 0.0


def ink_ious(
    picture: PixelArray, true: PixelArray, frames: Sequence[tuple[int, int, int, int]]
) -> list[float]:
    """For each frame of a scene: the IoU of the ink's box, in the quarter of the picture that the frame is
    in, with that of the true picture."""
    half_y, half_x = picture.shape[0] // 2, picture.shape[1] // 2
    found = []
    for x0, y0, x1, y1 in frames:
        rows = slice(0, half_y) if y0 + y1 < 2 * half_y else slice(half_y, None)
        columns = slice(0, half_x) if x0 + x1 < 2 * half_x else slice(half_x, None)
        quarter = np.s_[rows, columns]
        found.append(iou(frame_of(ink(picture)[quarter]), frame_of(ink(true)[quarter])))
    return found
