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
from cm3icons.outlines.paths import Paths, doubled_areas, outlines, simplified

#: Points (x, y) of a closed path on the grid, int32 [P, 2].
Path: TypeAlias = IntArray
#: Pictures that are traced at once.
_BATCH = 256
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
        starts = range(0, len(pixels_NHWC), _BATCH)
        codes = [self._codes(self._dark(pixels_NHWC[at : at + _BATCH])) for at in starts]
        return np.concatenate([np.zeros((0, self._form.num_codes), np.int32), *codes])

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
        red, green, blue = np.moveaxis(pixels_NHWC, 3, 0).astype(np.int32)
        grey = ((red + green + blue) / 3).reshape(-1, cells, side, cells, side)
        dark: BoolArray = grey.mean(axis=(2, 4)) < DARK
        return dark

    def _codes(self, dark_NGG: BoolArray) -> IntArray:
        """Codes of pictures' outlines, with the end."""
        form, number = self._form, len(dark_NGG)
        traced = outlines(dark_NGG)
        parts, again_N, tolerance = [], np.ones(number, bool), self.tolerance
        while len(traced.picture_P):
            paths = simplified(traced, tolerance)
            coarser = tolerance <= self.cells / 8
            again_N = (self._needed(paths, number) > form.num_codes - 1) & coarser
            parts.append(paths.chosen(~again_N[paths.picture_P]))
            traced = traced.chosen(again_N[traced.picture_P])
            tolerance = max(2 * tolerance, 0.5)
        codes_Nc = np.full((number, form.num_codes), form.end, np.int32)
        for paths in parts:
            self._write(codes_Nc, self._that_fit(paths, number))
        return codes_Nc

    def _needed(self, paths: Paths, number: int) -> NDArray[np.int64]:
        """Codes of the paths of each of the pictures."""
        needed_N = np.zeros(number, np.int64)
        np.add.at(needed_N, paths.picture_P, 2 * paths.lengths_P + 1)
        return needed_N

    def _that_fit(self, paths: Paths, number: int) -> Paths:
        """The paths of each picture, the largest first, without those for which no room is left."""
        paths = paths.ordered(np.lexsort((-doubled_areas(paths), paths.picture_P)))
        kept_P = np.ones(len(paths.picture_P), bool)
        for picture in np.flatnonzero(self._needed(paths, number) > self._form.num_codes - 1):
            room = self._form.num_codes - 1
            for path in np.flatnonzero(paths.picture_P == picture):
                kept_P[path] = (own := 2 * int(paths.lengths_P[path]) + 1) <= room
                room -= own * int(kept_P[path])
        return paths.chosen(kept_P)

    def _write(self, codes_Nc: IntArray, paths: Paths) -> None:
        """Write the codes of paths into those of their pictures."""
        needed_P = 2 * paths.lengths_P + 1
        ends_P = np.cumsum(needed_P)
        first_P = np.searchsorted(paths.picture_P, paths.picture_P)
        # where a path begins, counted from the first one of its picture
        begin_P = ends_P - needed_P - (ends_P - needed_P)[first_P]
        path_V = np.repeat(np.arange(len(needed_P)), paths.lengths_P)
        place_V = begin_P[path_V] + 2 * (np.arange(len(path_V)) - paths.starts_P[path_V])
        picture_V = paths.picture_P[path_V]
        codes_Nc[picture_V, place_V] = paths.points_V2[:, 0]
        codes_Nc[picture_V, place_V + 1] = paths.points_V2[:, 1] + self.cells + 1
        codes_Nc[paths.picture_P, begin_P + needed_P - 1] = 2 * (self.cells + 1)


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
