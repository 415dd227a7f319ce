"""Scenes of two to four icons at boxes, each a function of its split and number."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as Pillow

from cm3core.boxes import Boxes

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: The scene is a table of this many cells a side, at most one icon in each; an icon's size in cells.
_CELLS, _SMALLEST, _LARGEST = 2, 0.6, 0.95


class Placed(NamedTuple):
    """An icon of a scene: its position in the corpus, its name, and its frame (x0, y0, x1, y1)."""

    icon: int
    name: str
    box: tuple[int, int, int, int]


def scene(
    split: str, number: int, pool: Sequence[tuple[int, str]], size: int
) -> tuple[Placed, ...]:
    """The icons of a scene, from left to right.

    Args:
        split, number: which scene.
        pool: (position in the corpus, name) of the icons to choose from.
        size: side of the picture in pixels.
    """
    rng = np.random.default_rng([zlib.crc32(split.encode()), number])
    cells = rng.permutation(_CELLS * _CELLS)[: int(rng.integers(2, _CELLS * _CELLS + 1))]
    placed: list[Placed] = []
    for cell in cells.tolist():
        index, name = pool[int(rng.integers(len(pool)))]
        side = size // _CELLS
        own = int(side * rng.uniform(_SMALLEST, _LARGEST))
        x0 = (cell % _CELLS) * side + int(rng.integers(side - own + 1))
        y0 = (cell // _CELLS) * side + int(rng.integers(side - own + 1))
        if name not in [other.name for other in placed]:
            placed.append(Placed(index, name, (x0, y0, x0 + own, y0 + own)))
    return tuple(sorted(placed, key=lambda one: one.box))


def boxes(placed: Sequence[Placed], size: int) -> Boxes:
    """The icons' frames."""
    return Boxes(tuple((one.name, one.box) for one in placed), (size, size))


def draw(placed: Sequence[Placed], pictures: Sequence[PixelArray], size: int) -> PixelArray:
    """The picture of a scene, uint8 [size, size, 3], on white."""
    whole = np.full((size, size, 3), 255, np.uint8)
    for one, picture in zip(placed, pictures, strict=True):
        x0, y0, x1, y1 = one.box
        small = Pillow.fromarray(picture).resize((x1 - x0, y1 - y0), Pillow.Resampling.LANCZOS)
        whole[y0:y1, x0:x1] = np.asarray(small)
    return whole


def in_words(names: Sequence[str]) -> str:
    """Names as a phrase.

    >>> in_words(["bell", "key", "lock"])
    'bell, key and lock'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
