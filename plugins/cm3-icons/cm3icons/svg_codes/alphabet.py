"""The codes of `svg`: which code is which command, number or style, and which may follow which.

A drawing is a sequence of elements. An element begins with its paint, or with `same` (that of the element before it),
and is a path or a rectangle, circle or ellipse:

    fill M 12 3 c ... z  stroke width caps M 4 4 l 2 2 v 3  same circle 12 12 4  end

Numbers are multiples of `STEP` on a canvas of `UNITS` x `UNITS` units, the usual size of icons. The first point of a
path is absolute; what follows is relative to the pen where the numbers written so far have taken it, so that rounding
does not add up. Legend: V codes of the codebook, S states, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cm3core.picture_form import FORBIDDEN, CodeRules

#: Units per side of the canvas, and numbers per unit.
UNITS, PER_UNIT = 24, 4
#: Units outside the canvas that absolute positions may reach.
MARGIN = 2
#: Widths of lines per unit, and the greatest width in units.
WIDTHS_PER_UNIT, MOST_WIDTH = 8, 6
#: Steps of opacity below 1, and of grey above black.
NUM_OPACITIES, NUM_TONES = 19, 15

#: What paints an element: (fills, even-odd rule, strokes).
PAINTS: tuple[tuple[bool, bool, bool], ...] = (
    (True, False, False),
    (True, True, False),
    (False, False, True),
    (True, False, True),
    (True, True, True),
)
CAPS, JOINS = ("butt", "round", "square"), ("miter", "round", "bevel")

#: Command -> kinds of its numbers: x and y absolute, u and v relative, r a length, f the flags of an arc.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "M": "xy",
        "l": "uv",
        "h": "u",
        "v": "v",
        "c": "uvuvuv",
        "s": "uvuv",
        "q": "uvuv",
        "t": "uv",
        "a": "rfuv",
        "e": "rrfuv",
        "rect": "xyrrr",
        "circle": "xyr",
        "ellipse": "xyrr",
    }
)
#: Elements that are not paths.
SHAPES = ("rect", "circle", "ellipse")


class Kind(NamedTuple):
    """Codes that mean the same but for their value.

    Args:
        first: the first of them.
        number: how many.
        lowest: the value of the first.
    """

    first: int
    number: int
    lowest: int


@dataclass(frozen=True)
class Alphabet:
    """The table of codes.

    Args:
        kinds: name -> codes; names are commands, "z", "same", "end", and kinds of values.
        rules: which codes may follow which.
        states: name of each state of the rules.
    """

    kinds: Mapping[str, Kind]
    rules: CodeRules
    states: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of codes, V."""
        return self.rules.codebook_size

    def code(self, kind: str, value: int = 0) -> int | None:
        """The code of a value; None: it is out of range."""
        first, number, lowest = self.kinds[kind]
        return first + value - lowest if 0 <= value - lowest < number else None

    @property
    def end(self) -> int:
        """The code that ends a drawing."""
        return self.kinds["end"].first

    def named(self) -> list[tuple[str, int]]:
        """(kind, value) of each code."""
        return [
            (name, kind.lowest + offset)
            for name, kind in self.kinds.items()
            for offset in range(kind.number)
        ]


def value_kind(letter: str) -> str:
    """The kind of a command's number: x and y share their codes, so do u and v."""
    return {
        "x": "position",
        "y": "position",
        "u": "step",
        "v": "step",
        "r": "length",
        "f": "flags",
    }[letter]


@lru_cache(maxsize=1)
def alphabet() -> Alphabet:
    """The table of codes, which is always the same."""
    farthest, most = (UNITS + MARGIN) * PER_UNIT, UNITS * PER_UNIT
    values = {
        "position": (-MARGIN * PER_UNIT, farthest),
        "step": (-most, most),
        "length": (0, 2 * most),
        "flags": (0, 3),
        "paint": (0, len(PAINTS) - 1),
        "tone": (1, NUM_TONES),
        "width": (1, MOST_WIDTH * WIDTHS_PER_UNIT),
        "ends": (0, len(CAPS) * len(JOINS) - 1),
        "opacity": (1, NUM_OPACITIES),
    }
    kinds: dict[str, Kind] = {}
    for name in (*COMMANDS, "z", "same", *values, "end"):
        low, high = values.get(name, (0, 0))
        first = sum(kind.number for kind in kinds.values())
        kinds[name] = Kind(first, high - low + 1, low)
    return Alphabet(MappingProxyType(kinds), *_rules(kinds))


def _rules(kinds: Mapping[str, Kind]) -> tuple[CodeRules, tuple[str, ...]]:
    """Rules, and the names of their states."""
    classes: list[str] = []
    class_of: list[int] = []
    for name, kind in kinds.items():
        if name == "paint":  # of lines and of areas alone
            own = [f"paint {'stroke' if strokes else 'fill'}" for _, _, strokes in PAINTS]
        else:
            own = [name] * kind.number
        for one in own:
            if one not in classes:
                classes.append(one)
            class_of.append(classes.index(one))
    leads: dict[str, dict[str, str]] = {}
    element = {"M": "M 0", **{shape: f"{shape} 0" for shape in SHAPES}}
    strokes = {"width": "width"}
    leads["start"] = {"paint fill": "fill", "paint stroke": "stroke"}
    leads["fill"] = {"tone": "fill tone", "opacity": "opaque", **element}
    leads["fill tone"] = {"opacity": "opaque", **element}
    leads["stroke"] = {"tone": "stroke tone", **strokes}
    leads["stroke tone"] = strokes
    leads["width"] = {"ends": "ends"}
    leads["ends"] = {"opacity": "opaque", **element}
    leads["opaque"] = leads["same"] = element
    following = {**leads["start"], "same": "same", "end": "end"}
    segments = {name: f"{name} 0" for name in COMMANDS if name not in SHAPES and name != "M"}
    leads["moved"] = segments
    leads["drawn"] = {**segments, "M": "M 0", "z": "closed", **following}
    leads["closed"] = {"M": "M 0", **following}
    leads["shape"] = following
    leads["end"] = {"end": "end"}
    for name, letters in COMMANDS.items():
        last = "shape" if name in SHAPES else "moved" if name == "M" else "drawn"
        for place, letter in enumerate(letters):
            after = f"{name} {place + 1}" if place + 1 < len(letters) else last
            leads[f"{name} {place}"] = {value_kind(letter): after}
    states = tuple(leads)
    follows = np.full((len(states), len(classes)), FORBIDDEN, np.int32)
    for row, after_of in enumerate(leads.values()):
        for name, after in after_of.items():
            follows[row, classes.index(name)] = states.index(after)
    return CodeRules(np.asarray(class_of, np.int32), follows), states
