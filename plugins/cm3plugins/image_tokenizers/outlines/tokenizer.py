"""`outlines`: pictures <-> closed paths on a grid. The config is in the package's `__init__`.

Legend: N pictures, c codes of a picture's array, R pixels per side, G cells per side, P points of a path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cm3core.document import BoolArray, IntArray, PixelArray
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3core.picture_form import PictureForm

#: Points (x, y) of a closed path on the grid, int32 [P, 2].
Path: TypeAlias = IntArray
_Point: TypeAlias = tuple[int, int]
#: Samples per pixel and side when paths are filled.
SAMPLES = 4
#: Below this grey level a cell is dark.
DARK = 128


class OutlineTokenizer(ImageTokenizer):
    """See `OutlinesConfig` for the arguments; `form`: of its codes."""

    def __init__(self, resolution: int, cells: int, tolerance: float, form: PictureForm) -> None:
        self.resolution, self.cells, self.tolerance = resolution, cells, tolerance
        self._form = form

    @property
    def image_size(self) -> tuple[int, int]:
        return self.resolution, self.resolution

    @property
    def form(self) -> PictureForm:
        return self._form

    @property
    def codebook_size(self) -> int:
        return 2 * (self.cells + 1) + 2

    @property
    def fingerprint(self) -> str:
        """Hash of the sizes, the tolerance and the form: nothing else decides."""
        sizes = [self.resolution, self.cells, self.tolerance, self._form.num_codes]
        content = json.dumps(["outlines", *sizes]).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        codes = [self._form.padded(self._codes(dark)) for dark in self._dark(pixels_NHWC)]
        return np.stack(codes) if codes else np.zeros((0, self._form.num_codes), np.int32)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        size = self.resolution
        covered = [filled(self.paths(codes), self.cells, size) for codes in codes_Nc]
        light_NHW = 255 - np.array(covered).reshape(len(codes_Nc), size, size)
        return np.repeat(np.rint(light_NHW).astype(np.uint8)[..., None], 3, axis=3)

    def paths(self, codes_c: IntArray) -> list[Path]:
        """The paths of a picture's codes, in order."""
        close = 2 * (self.cells + 1)
        own = codes_c[: self._form.length(codes_c) - 1]
        parts = np.split(own, np.flatnonzero(own == close) + 1)
        points = [part[:-1].reshape(-1, 2) for part in parts if len(part)]
        return [np.stack([one[:, 0], one[:, 1] - self.cells - 1], axis=1) for one in points]

    def svg(self, codes_c: IntArray) -> str:
        """A picture as SVG, one path in units of cells."""
        lines = [
            "M" + "L".join(f"{x} {y}" for x, y in path.tolist()) + "Z"
            for path in self.paths(codes_c)
        ]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.cells} {self.cells}">'
            f'<path fill-rule="evenodd" d="{"".join(lines)}"/></svg>'
        )

    def _dark(self, pixels_NHWC: PixelArray) -> BoolArray:
        """Which cells are dark, bool [N, G, G]."""
        cells, side = self.cells, self.resolution // self.cells
        grey = pixels_NHWC.mean(axis=3).reshape(-1, cells, side, cells, side).mean(axis=(2, 4))
        dark: BoolArray = grey < DARK
        return dark

    def _codes(self, dark_GG: BoolArray) -> IntArray:
        """Codes of a picture's outlines, with the end."""
        traced = outlines(dark_GG)
        room = self._form.num_codes - 1
        tolerance = self.tolerance
        while True:
            paths = [simplified(path, tolerance) for path in traced]
            paths = [path for path in paths if len(path) >= 3]
            number = sum(2 * len(path) + 1 for path in paths)
            if number <= room or tolerance > self.cells / 8:
                break
            tolerance = max(2 * tolerance, 0.5)
        written: list[int] = []
        close = 2 * (self.cells + 1)
        for path in sorted(paths, key=lambda path: -_area(path)):
            if len(written) + 2 * len(path) + 1 <= room:
                points = path + np.array([0, self.cells + 1], np.int32)
                written += [*points.ravel().tolist(), close]
        return np.array([*written, close + 1], np.int32)


def outlines(dark_GG: BoolArray) -> list[Path]:
    """Closed paths between dark and light cells, corners only, with the dark cells on the right. Dark cells that touch at
    a corner alone are apart."""
    dark = np.pad(dark_GG, 1)
    #: Point -> points that an edge leads to.
    leads: dict[_Point, list[_Point]] = {}
    for cells, neighbours, begin, end in (
        (dark[1:-1, 1:-1], dark[:-2, 1:-1], (0, 0), (1, 0)),  # above: to the right
        (dark[1:-1, 1:-1], dark[1:-1, 2:], (1, 0), (1, 1)),  # right: down
        (dark[1:-1, 1:-1], dark[2:, 1:-1], (1, 1), (0, 1)),  # below: to the left
        (dark[1:-1, 1:-1], dark[1:-1, :-2], (0, 1), (0, 0)),  # left: up
    ):
        for y, x in np.argwhere(cells & ~neighbours).tolist():
            start = (x + begin[0], y + begin[1])
            leads.setdefault(start, []).append((x + end[0], y + end[1]))
    paths = []
    for start in sorted(leads):
        while leads[start]:
            point: _Point = start
            before: _Point | None = None
            path = [start]
            while True:
                ways = leads[point]
                # to the right first, so that cells which touch at a corner stay apart
                turns = [0 if before is None else _right_turn(before, point, way) for way in ways]
                way = ways.pop(turns.index(max(turns)))
                before, point = point, way
                if point == start:
                    break
                path.append(point)
            paths.append(_corners(np.array(path, np.int32)))
    return paths


def _right_turn(before: _Point, point: _Point, way: _Point) -> int:
    """How far a way turns to the right (y points down): 1, 0 straight on, -1 to the left."""
    return (point[0] - before[0]) * (way[1] - point[1]) - (point[1] - before[1]) * (
        way[0] - point[0]
    )


def _corners(path: Path) -> Path:
    """The path without points at which it goes straight on."""
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    corners: Path = path[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return corners


def simplified(path: Path, tolerance: float) -> Path:
    """A closed path with fewer points, none of the others further than `tolerance` from it (Douglas and Peucker 1973).

    It begins with its first point; the second one that is certainly kept is the furthest from it.
    """
    if tolerance <= 0 or len(path) < 4:
        return path
    far = int(np.argmax(((path - path[0]) ** 2).sum(1)))
    closed = np.concatenate([path, path[:1]])
    first, second = _kept(closed[: far + 1], tolerance), _kept(closed[far:], tolerance)
    return np.concatenate([first[:-1], second[:-1]])


def _kept(line: Path, tolerance: float) -> Path:
    """The points of an open line that are kept."""
    if len(line) < 3:
        return line
    along = (line[-1] - line[0]).astype(float)
    from_first = (line - line[0]).astype(float)
    length = np.hypot(*along)
    if length == 0:
        distance = np.hypot(from_first[:, 0], from_first[:, 1])
    else:
        distance = np.abs(from_first[:, 0] * along[1] - from_first[:, 1] * along[0]) / length
    place = int(np.argmax(distance))
    if distance[place] <= tolerance:
        return line[[0, -1]]
    before, after = _kept(line[: place + 1], tolerance), _kept(line[place:], tolerance)
    return np.concatenate([before[:-1], after])


def _area(path: Path) -> float:
    """Area of a closed path in cells."""
    after = np.roll(path, -1, axis=0)
    return abs(float((path[:, 0] * after[:, 1] - path[:, 1] * after[:, 0]).sum())) / 2


def filled(paths: Sequence[Path], cells: int, size: int) -> NDArray[np.float64]:
    """How much of each pixel paths cover by the even-odd rule, [R, R] in 0..255.

    Args:
        paths: on a grid of `cells` per side.
        cells: G.
        size: R.
    """
    number = size * SAMPLES
    crossings = np.zeros((number, number + 1), np.int32)
    for path in paths:
        begin = path * (number / cells)
        for (x0, y0), (x1, y1) in zip(
            begin.tolist(), np.roll(begin, -1, axis=0).tolist(), strict=True
        ):
            low, high = sorted((y0, y1))
            rows = np.arange(max(0, int(np.ceil(low - 0.5))), min(number, int(np.ceil(high - 0.5))))
            if len(rows):
                x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, number).astype(int)), 1)
    inside = crossings[:, :number].cumsum(axis=1) % 2
    covered: NDArray[np.float64] = inside.reshape(size, SAMPLES, size, SAMPLES).mean(axis=(1, 3))
    return covered * 255
