"""Scenes of plain shapes, and an exact checker for them.

The checker assigns each pixel the nearest colour of the palette, treats connected parts of one colour as
objects, and recognises their shape by the share of the bounding box that they fill: 1 for a square, pi / 4
for a circle, 1 / 2 for a triangle. It is exact for scenes of `draw_scene`; unrecognised parts are not objects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from cm3core.document import BoolArray, PixelArray

SHAPES = ("circle", "square", "triangle")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 210),
    "yellow": (240, 200, 40),
    "black": (20, 20, 20),
}
_WHITE = (255, 255, 255)
#: Side of a checked picture in pixels; larger pictures are reduced.
_SIDE = 128
#: Minimum share of the picture that an object covers; smaller parts are noise.
_LEAST = 0.004
#: Shares of the bounding box that separate triangles, circles and squares.
_TRIANGLE, _CIRCLE = 0.64, 0.89
#: Minimum distance between centres, as a share of the picture, for "left of" or "above".
_APART = 0.05


@dataclass(frozen=True)
class Found:
    """An object: its colour and shape, and its centre (0 to 1, from the left and from the top)."""

    colour: str
    shape: str
    centre: tuple[float, float]


def draw_scene(target: Mapping[str, Any], size: int) -> PixelArray:
    """A picture of a target, the same for equal targets, uint8 [size, size, 3]."""
    rng = np.random.default_rng(
        int(hashlib.sha256(json.dumps(target, sort_keys=True).encode()).hexdigest()[:15], 16)
    )
    things = [(colour, shape) for colour, shape, num in target["objects"] for _ in range(num)]
    side = 2 if len(things) > 1 or "position" in target else 1
    cells = rng.permutation(side * side)[: len(things)]
    places = [divmod(int(cell), side) for cell in cells]
    if "position" in target:
        column, row = target["position"]
        other = int(rng.integers(2))
        # the second object is at (0, 0) or (1, 1) of the axis on which they differ
        places = [
            ((row + 1) // 2, other) if row else (other, (column + 1) // 2),
            ((1 - row) // 2, other) if row else (other, (1 - column) // 2),
        ]
    pixels = np.full((size, size, 3), 255, np.uint8)
    cell = size / side
    for (colour, shape), (row, column) in zip(things, places, strict=True):
        radius = cell * (0.28 + 0.1 * rng.random())
        centre = ((column + 0.5) * cell, (row + 0.5) * cell)
        pixels[_mask(shape, centre, radius, size)] = COLOURS[colour]
    return pixels


def find_objects(pixels_HWC: PixelArray) -> list[Found]:
    """The objects in a picture uint8 [H, W, 3]."""
    if max(pixels_HWC.shape[:2]) > _SIDE:
        picture = Pillow.fromarray(pixels_HWC)
        picture.thumbnail((_SIDE, _SIDE), Pillow.Resampling.NEAREST)
        pixels_HWC = np.asarray(picture)
    height, width = pixels_HWC.shape[:2]
    names = [*COLOURS, "white"]
    palette_K3 = np.array([*COLOURS.values(), _WHITE], np.int32)
    distances_HWK = ((pixels_HWC[:, :, None].astype(np.int32) - palette_K3) ** 2).sum(-1)
    nearest_HW = distances_HWK.argmin(-1)
    found = []
    for place, colour in enumerate(names[:-1]):
        for part_HW in _parts(nearest_HW == place):
            rows, columns = np.nonzero(part_HW)
            if len(rows) < max(6, _LEAST * height * width):
                continue
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            centre = (float(columns.mean() + 0.5) / width, float(rows.mean() + 0.5) / height)
            found.append(Found(colour, _shape(len(rows) / box), centre))
    return found


def scene_is_right(pixels_HWC: PixelArray, target: Mapping[str, Any]) -> bool:
    """Whether a picture shows exactly the objects of a target in their places."""
    found = find_objects(pixels_HWC)
    wanted = [(colour, shape) for colour, shape, num in target["objects"] for _ in range(num)]
    if sorted(wanted) != sorted((one.colour, one.shape) for one in found):
        return False
    if "position" not in target:
        return True
    first, second = (
        next(one for one in found if (one.colour, one.shape) == thing) for thing in wanted
    )
    return all(
        (a - b) * step > _APART
        for a, b, step in zip(first.centre, second.centre, target["position"], strict=True)
        if step
    )


def _shape(share: float) -> str:
    """The shape that fills this share of its bounding box."""
    return "triangle" if share < _TRIANGLE else "circle" if share < _CIRCLE else "square"


def _mask(shape: str, centre: Sequence[float], radius: float, size: int) -> BoolArray:
    """Pixels of a shape, bool [size, size]."""
    y_H1, x_1W = (np.arange(size) + 0.5)[:, None], (np.arange(size) + 0.5)[None]
    x, y = x_1W - centre[0], y_H1 - centre[1]
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= radius**2)
    if shape == "square":
        return np.asarray((abs(x) <= radius) & (abs(y) <= radius))
    return np.asarray((abs(y) <= radius) & (abs(x) <= (y + radius) / 2))


def _parts(mask_HW: BoolArray) -> list[BoolArray]:
    """The connected parts of a mask, including diagonal connections."""
    labels: npt.NDArray[np.int64] = np.where(
        mask_HW, np.arange(1, mask_HW.size + 1).reshape(mask_HW.shape), 0
    )
    while True:
        padded = np.pad(labels, 1)
        height, width = labels.shape
        spread = np.max(
            [padded[r : r + height, c : c + width] for r in range(3) for c in range(3)], axis=0
        )
        spread = np.where(mask_HW, spread, 0)
        if np.array_equal(spread, labels):
            return [labels == label for label in np.unique(labels) if label]
        labels = spread
