"""Codes -> an SVG document of plain elements on the canvas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cm3core.document import IntArray
from cm3icons.svg_codes.alphabet import (
    CAPS,
    COMMANDS,
    JOINS,
    NUM_OPACITIES,
    NUM_TONES,
    PAINTS,
    PER_UNIT,
    SHAPES,
    UNITS,
    WIDTHS_PER_UNIT,
    Alphabet,
    alphabet,
)

_OWN = {
    "rect": ("x", "y", "width", "height", "rx"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}


def svg_of(codes: IntArray | Sequence[int]) -> str:
    """The SVG document of a picture's codes, up to its end."""
    elements = "".join(_elements(codes, alphabet()))
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {UNITS} {UNITS}">{elements}</svg>'


def _elements(codes: IntArray | Sequence[int], table: Alphabet) -> Iterator[str]:
    named = table.named()
    values = [named[code] for code in codes]
    place, style, path = 0, "", ""
    while place < len(values) and values[place][0] != "end":
        name, value = values[place]
        place += 1
        if path and name in ("paint", "same"):
            yield f'<path {style} d="{path}"/>'
            path = ""
        if name == "paint":
            facts = {}
            while values[place][0] in ("tone", "width", "ends", "opacity"):
                facts[values[place][0]] = values[place][1]
                place += 1
            style = _style(value, facts)
        elif name == "z":
            path += "z"
        elif name != "same":
            count = len(COMMANDS[name])
            numbers = [number for _, number in values[place : place + count]]
            place += count
            if name in SHAPES:
                yield f"<{name} {style} {_attributes(zip(_OWN[name], map(_units, numbers), strict=True))}/>"
            else:
                path += _segment(name, numbers)
    if path:
        yield f'<path {style} d="{path}"/>'


def _units(number: int) -> str:
    return f"{number / PER_UNIT:g}"


def _segment(name: str, numbers: Sequence[int]) -> str:
    if name == "h" and numbers == [0]:
        return "h.01"  # a dot: without length, some renderers draw nothing
    if name not in "ae":
        return name + " ".join(map(_units, numbers))
    radii, (flags, *step) = numbers[:-3], numbers[-3:]
    parts = (_units(radii[0]), _units(radii[-1]), "0", str(flags // 2), str(flags % 2))
    return "a" + " ".join((*parts, *map(_units, step)))


def _style(paint: int, facts: dict[str, int]) -> str:
    """The attributes of an element."""
    fills, evenodd, strokes = PAINTS[paint]
    tone = round(255 * facts.get("tone", 0) / NUM_TONES)
    colour = f"#{tone:02x}{tone:02x}{tone:02x}" if tone else "currentColor"
    own = {"fill": colour if fills else "none"}
    if evenodd:
        own["fill-rule"] = "evenodd"
    if strokes:
        cap, join = divmod(facts["ends"], len(JOINS))
        own |= {"stroke": colour, "stroke-width": f"{facts['width'] / WIDTHS_PER_UNIT:g}"}
        own |= {"stroke-linecap": CAPS[cap], "stroke-linejoin": JOINS[join]}
    if "opacity" in facts:
        own["opacity"] = f"{facts['opacity'] / (NUM_OPACITIES + 1):g}"
    return _attributes(own.items())


def _attributes(pairs: Iterable[tuple[str, str]]) -> str:
    return " ".join(f'{key}="{value}"' for key, value in pairs)
