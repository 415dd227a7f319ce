"""Drawings on a canvas of `UNITS` units, as a model writes them: shapes of any drawing are moved there, and scaled.

Legend: a view box is left, top, width and height, all in units of the document; those here are square.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from cm3core.document import PixelArray
from cm3icons.svg_codes.alphabet import UNITS
from cm3icons.svg_codes.reading import commands_of, number_of, path_of, points_of
from cm3plugins.datasets.svg_folder.reading import NAMESPACE, SHAPES, Box
from cm3plugins.svg import render_svg
from cm3run.xml_text import parse_xml

#: The paint that elements have without attributes.
DEFAULTS = {
    "fill": "", "stroke": "none", "stroke-width": "1", "stroke-linecap": "butt", "stroke-linejoin": "miter",
    "fill-rule": "nonzero", "opacity": "1",
}  # fmt: skip  # a pair a line is harder to read
#: Lengths of shapes that have a form of their own in `Hand.written`.
_LENGTHS = {"rect": ("width", "height"), "circle": ("r",), "ellipse": ("rx", "ry")}
#: A line so short, in widths, is a dot.
_DOT = 0.25
#: How much around the canvas is looked at, and pixels per side in which it is.
_AROUND, _SIDE = 2.0, 256
#: How many times a drawing is fitted, since its lines stay as wide as they are, and how exactly.
_FITTED, _NEAR = 3, 0.01


def local_name(element: ElementTree.Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2]


def shapes_of(root: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Yield a drawing's shapes in the order in which they are painted."""
    return (one for one in root.iter() if local_name(one) in SHAPES)


def style_of(element: ElementTree.Element) -> dict[str, str]:
    """All paint of an element; elements carry what they inherit."""
    style = {key: element.get(key, default) for key, default in DEFAULTS.items()}
    style["fill"] = style["fill"] or "currentColor"
    return style


def reach(pixels: PixelArray) -> float:
    """How far a picture's ink reaches from its middle, as a share of the way to its edges; 0 for a blank one.

    Args:
        pixels: uint8 [side, side, 3].

    >>> picture = np.full((8, 8, 3), 255, np.uint8)
    >>> picture[2:4, 5] = 0
    >>> reach(picture)
    0.5
    """
    side = pixels.shape[0]
    dark = pixels[:, :, 0] < 128
    places = np.concatenate([np.flatnonzero(dark.any(axis)) for axis in (0, 1)])
    if not len(places):
        return 0.0
    return float(max(side / 2 - places.min(), places.max() + 1 - side / 2) / (side / 2))


def on_canvas(svg: str, box: Box | None = None) -> str:
    """A drawing of plain shapes on the canvas: paths with an absolute M and relative commands, rectangles, circles and
    ellipses. Widths of lines are scaled, too.

    Args:
        svg: without transforms.
        box: what of it the canvas shows; None: its view box, which is square.
    """
    root = parse_xml(svg)
    left, top, side, _ = (
        (float(one) for one in root.attrib["viewBox"].split()) if box is None else box
    )
    scale = UNITS / side
    canvas = ElementTree.Element("svg", {"xmlns": NAMESPACE, "viewBox": f"0 0 {UNITS} {UNITS}"})
    for element in shapes_of(root):
        style = style_of(element)
        style["stroke-width"] = f"{number_of(style['stroke-width']) * scale:.4f}"
        for name, place in _places(element, left, top, scale):
            ElementTree.SubElement(canvas, name, place | style)
    return ElementTree.tostring(canvas, encoding="unicode")


def dots_as_lines(d: str, width: float) -> str:
    """A path whose dots are as long as its line is wide: a line with butt ends and hardly any length can't be seen.

    Args:
        d: as `on_canvas` writes it.

    >>> dots_as_lines("M4 4h.01M8 8l2 0", 1.5)
    'M3.25 4h1.5M8 8l2 0'
    """
    parts: list[str] = []
    for one in filter(None, d.split("M")):
        commands = list(commands_of(f"M{one}"))
        steps = [abs(value) for letter, numbers in commands[1:] for value in numbers]
        x, y = commands[0].numbers
        is_dot = bool(steps) and max(steps) < _DOT * width
        parts.append(f"{x - width / 2:.6g} {y:.6g}h{width:.6g}" if is_dot else one)
    return "".join(f"M{one}" for one in parts)


def scaled(svg: str, larger: float) -> str:
    """A drawing on the canvas, so many times as large about its middle; its lines stay as wide as they are."""
    side = UNITS / larger
    start = (UNITS - side) / 2
    root = parse_xml(on_canvas(svg, (start, start, side, side)))
    for one in root:
        one.set("stroke-width", f"{number_of(one.attrib['stroke-width']) / larger:.4f}")
    return ElementTree.tostring(root, encoding="unicode")


def within(svg: str, least: float, most: float) -> str:
    """A drawing on the canvas, larger or smaller where it does not reach as far as a set's drawings do.

    Args:
        least, most: of `reach`.
    """
    drawn, larger = svg, 1.0
    for _ in range(_FITTED):
        found = _reach_around(drawn)
        if not found or least - _NEAR <= found <= most + _NEAR:
            break
        larger *= min(max(found, least), most) / found
        drawn = scaled(svg, larger)
    return drawn


def _reach_around(svg: str) -> float:
    """The reach of a drawing on the canvas with what is beyond it."""
    root = parse_xml(svg)
    side = UNITS * _AROUND
    root.set("viewBox", f"{(UNITS - side) / 2} {(UNITS - side) / 2} {side} {side}")
    return _AROUND * reach(render_svg(ElementTree.tostring(root, encoding="unicode"), _SIDE))


def _places(
    element: ElementTree.Element, left: float, top: float, scale: float
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the geometry of a shape on the canvas, as `Hand.written` reads it; nothing for an empty one."""
    name = local_name(element)

    def own(key: str) -> float:
        return number_of(element.get(key) or "0")

    lengths = _LENGTHS.get(name)
    if lengths is None:
        d = path_of(name, element)
        if d.strip():
            yield "path", {"d": _moved(d, left, top, scale)}
    elif min(map(own, lengths)) > 0:
        x, y = ("x", "y") if name == "rect" else ("cx", "cy")
        place = {x: (own(x) - left) * scale, y: (own(y) - top) * scale}
        place |= {key: own(key) * scale for key in lengths}
        if name == "rect":
            corner = min(own("rx") or own("ry"), own("width") / 2, own("height") / 2)
            place["rx"] = corner * scale
        yield name, {key: f"{value:.5f}" for key, value in place.items()}


def _moved(d: str, left: float, top: float, scale: float) -> str:
    """A path on the canvas: M absolute, all others relative."""
    pen = start = (0.0, 0.0)
    parts = []
    for letter, numbers in commands_of(d):
        lower = letter.lower()
        if lower == "z":
            parts.append("z")
            pen = start
            continue
        points = points_of(letter, numbers, pen)
        if lower == "m":
            start = points[-1]
            values = [(start[0] - left) * scale, (start[1] - top) * scale]
        else:
            values = [value * scale for x, y in points for value in (x - pen[0], y - pen[1])]
            if lower == "a":
                values = [abs(numbers[0]) * scale, abs(numbers[1]) * scale, *numbers[2:5], *values]
            elif lower in "hv":
                values = [values["hv".index(lower)]]
        written = (f"{one:.5f}".rstrip("0").rstrip(".") for one in values)  # flags are 0 or 1
        parts.append(("M" if lower == "m" else lower) + " ".join(written))
        pen = points[-1]
    return "".join(parts)
