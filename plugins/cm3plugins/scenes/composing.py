"""A scene: its objects, places and background, and how it is drawn.

Places are whole units of a raster, so that a drawing covers whole squares of a patch tokenizer wherever it is. Legend: H, W
pixels; u pixels a unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.boxes import Boxes
from cm3core.document import PixelArray
from cm3plugins.scenes.keys import BACKGROUNDS, UNITS, RasterName, Relation, SizeName
from cm3plugins.scenes.sprites import composed

#: (left, top) in units.
Corner = tuple[int, int]
_ROWS, _COLUMNS = ("top", "", "bottom"), ("left", "", "right")


@dataclass(frozen=True)
class Raster:
    """Where objects may be.

    Args:
        side: units a side of the picture.
        sizes: units a side of an object, by size.
        offsets: by size, the first unit of the places along an axis, two or three.
    """

    side: int
    sizes: Mapping[SizeName, int]
    offsets: Mapping[SizeName, tuple[int, ...]]

    @cached_property
    def places(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (column, row) of the place."""
        number = len(self.offsets["large"])
        rows, columns = (
            (names if number == 3 else (names[0], names[2])) for names in (_ROWS, _COLUMNS)
        )
        return {
            " ".join((row + " " + column).split()) or "middle": (x, y)
            for y, row in enumerate(rows)
            for x, column in enumerate(columns)
        }

    def corner(self, size: SizeName, place: str) -> Corner:
        """Where an object of a size is at a place."""
        column, row = self.places[place]
        return self.offsets[size][column], self.offsets[size][row]

    def place_of(self, size: SizeName, corner: Corner) -> str:
        """The place with this corner; "" if it is none."""
        names = (name for name in self.places if self.corner(size, name) == corner)
        return next(names, "")

    @property
    def middle(self) -> Mapping[SizeName, Corner]:
        """Where a plain picture shows its object: as near to the middle as whole units allow."""
        return {
            size: ((self.side - units) // 2, (self.side - units) // 2)
            for size, units in self.sizes.items()
        }


RASTERS: Mapping[RasterName, Raster] = {
    "fine": Raster(
        UNITS["fine"], {"large": 6, "small": 4}, {"large": (1, 5, 9), "small": (1, 6, 11)}
    ),
    "coarse": Raster(UNITS["coarse"], {"large": 4}, {"large": (0, 4)}),
}


@dataclass(frozen=True)
class Item:
    """Equal objects.

    Args:
        concept, style: the drawing.
        size: of each.
        corners: of each.
        place: the place that a caption names; "": none.
    """

    concept: str
    style: str
    size: SizeName
    corners: tuple[Corner, ...]
    place: str = ""


@dataclass(frozen=True)
class Scene:
    """A picture's content.

    Args:
        items: its objects; those of an item are equal.
        background: its name.
        relation: of the first item to the second, if a caption names it.
    """

    items: tuple[Item, ...]
    background: str
    relation: Relation | None = None

    @property
    def truth(self) -> dict[str, Any]:
        """What a picture of it must show, as JSON values."""
        found: dict[str, Any] = asdict(self)
        return {
            **found,
            "items": [
                {**one, "corners": [list(c) for c in one["corners"]]} for one in found["items"]
            ],
        }


def scene_in(truth: Mapping[str, Any]) -> Scene:
    """The scene whose `truth` this is."""
    items = [
        Item(**{**one, "corners": tuple((left, top) for left, top in one["corners"])})
        for one in truth["items"]
    ]
    return Scene(tuple(items), truth["background"], truth["relation"])


def box_of(raster: Raster, size: SizeName, corner: Corner, unit: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of an object in pixels, half open.

    >>> box_of(RASTERS["coarse"], "large", (4, 0), 4)
    (16, 0, 32, 16)
    """
    (left, top), units = corner, raster.sizes[size]
    return left * unit, top * unit, (left + units) * unit, (top + units) * unit


def boxes_of(
    raster: Raster, items: Sequence[Item], labels: Mapping[str, str], unit: int = 1
) -> Boxes:
    """The boxes of all objects of some items, in a picture of so many pixels a unit.

    Args:
        raster: where objects may be.
        items: the items.
        labels: concept -> its name.
        unit: pixels a unit.
    """
    found = [
        (labels[item.concept], box_of(raster, item.size, corner, unit))
        for item in items
        for corner in item.corners
    ]
    return Boxes(tuple(found), (raster.side * unit, raster.side * unit))


def draw(
    scene: Scene,
    raster: Raster,
    sprites: Mapping[tuple[str, str, SizeName], npt.NDArray[np.uint8]],
    unit: int,
) -> PixelArray:
    """Draw a scene, uint8 [H, W, 3].

    Args:
        scene: its objects.
        raster: where they may be.
        sprites: (concept, style, size) -> its drawing with alpha, uint8 [side, side, 4].
        unit: pixels a unit.
    """
    colour = BACKGROUNDS[scene.background]
    whole = np.empty((raster.side * unit, raster.side * unit, 3), np.uint8)
    whole[:] = colour
    for item in scene.items:
        drawing = composed(sprites[item.concept, item.style, item.size][None], colour)[0]
        for corner in item.corners:
            x0, y0, x1, y1 = box_of(raster, item.size, corner, unit)
            whole[y0:y1, x0:x1] = drawing
    return whole


def apart(raster: Raster, objects: Sequence[tuple[SizeName, Corner]]) -> bool:
    """Whether no two objects share a unit."""
    return all(
        abs(a[1][0] - b[1][0]) >= raster.sizes[a[0] if a[1][0] < b[1][0] else b[0]]
        or abs(a[1][1] - b[1][1]) >= raster.sizes[a[0] if a[1][1] < b[1][1] else b[0]]
        for a, b in itertools.combinations(objects, 2)
    )


#: An item without corners: concept, style.
Named = tuple[str, str]


def at_places(raster: Raster, named: Sequence[Named], rng: np.random.Generator) -> list[Item]:
    """Objects at places of their own, in any sizes that leave room."""
    names, sizes = list(raster.places), list(raster.sizes)
    while True:
        chosen = [names[place] for place in rng.permutation(len(names))[: len(named)]]
        own = [sizes[int(rng.integers(len(sizes)))] for _ in named]
        objects = [
            (size, raster.corner(size, place)) for size, place in zip(own, chosen, strict=True)
        ]
        if apart(raster, objects):
            return [
                Item(*one, size, (corner,), place)
                for one, (size, corner), place in zip(named, objects, chosen, strict=True)
            ]


def in_row(
    raster: Raster, number: int, along: str, at: int
) -> list[tuple[SizeName, tuple[Corner, ...]]]:
    """The sizes in which so many equal objects have room side by side, with their corners.

    Args:
        raster: where objects may be.
        number: of objects.
        along: "row" or "column".
        at: number of the place across.
    """
    found: list[tuple[SizeName, tuple[Corner, ...]]] = []
    for size, offsets in raster.offsets.items():
        last = len(offsets) - 1
        places = {1: [last // 2], 2: [0, last], 3: [0, 1, 2]}.get(number, [])
        if number > len(offsets) or not places:
            continue
        across = offsets[min(at, last)]
        corners = [(offsets[p], across) if along == "row" else (across, offsets[p]) for p in places]
        if apart(raster, [(size, corner) for corner in corners]):
            found.append((size, tuple(corners)))
    return found


def related(
    raster: Raster,
    named: Sequence[Named],
    counts: Sequence[int],
    relation: Relation,
    rng: np.random.Generator,
) -> list[Item]:
    """Two items, the first on one side of the second; several equal objects stand side by side along the line between."""
    across = relation in ("left of", "right of")
    last = len(raster.offsets["large"]) - 1
    sides = (0, last) if relation in ("left of", "above") else (last, 0)
    items = []
    for (concept, style), number, side in zip(named, counts, sides, strict=True):
        options = in_row(raster, number, "column" if across else "row", side)
        size, corners = options[int(rng.integers(len(options)))]
        if number == 1:  # anywhere along its side
            offset = raster.offsets[size][int(rng.integers(last + 1))]
            corners = tuple((left, offset) if across else (offset, top) for left, top in corners)
        items.append(Item(concept, style, size, corners))
    return items


def several(raster: Raster, named: Named, number: int, rng: np.random.Generator) -> Item:
    """Equal objects: side by side, or at any places that leave room."""
    last = len(raster.offsets["large"]) - 1
    options = in_row(raster, number, "row", int(rng.integers(last + 1)))
    if options:
        size, corners = options[int(rng.integers(len(options)))]
        return Item(*named, size, corners)
    items = at_places(raster, [named] * number, rng)
    size = items[0].size
    while any(item.size != size for item in items):
        items = at_places(raster, [named] * number, rng)
        size = items[0].size
    return Item(*named, size, tuple(sorted(item.corners[0] for item in items)))


def plain(raster: Raster, named: Named, size: SizeName, background: str = "white") -> Scene:
    """One object in the middle: a document that shows a drawing."""
    return Scene((Item(*named, size, (raster.middle[size],)),), background)
