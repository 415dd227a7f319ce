"""A picture as a drawing in the hand of a set: lines of the set's width along the middle of its lines, or areas.

Legend: drawings lie on a canvas of `UNITS` units, as those of a model that writes drawings; the picture is enlarged before its
edges are followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cm3core.document import BoolArray, PixelArray
from cm3icons.complete.hand import Hand
from cm3icons.complete.tracing.centre_lines import centre_lines
from cm3icons.complete.tracing.curves import circle_of, fitted, tidied
from cm3icons.ink import Ink, ink_areas, ink_of, ink_svg, without_colour
from cm3icons.svg_codes.alphabet import UNITS
from cm3icons.svg_codes.reading import commands_of
from cm3plugins.datasets.svg_folder.reading import NAMESPACE
from cm3plugins.svg import render_svg
from cm3run.xml_text import parse_xml

Floats = NDArray[np.float64]

#: Pictures are enlarged to about this size.
_LARGE = 256
#: Share of ink in the same place from which lines are what the picture shows.
_FOLLOWS = 0.85
#: In units of the canvas: how far a curve may lie from a line's middle, and a level line from the grid to be moved there.
_TOLERANCE, _NEAR_GRID = 0.12, 0.3
#: Angle of a corner in radians, and tangent of the angle up to which a line is level.
_CORNER, _LEVEL = math.radians(40), 0.12
#: How far a cap reaches beyond the end of a line, in widths.
_BEYOND = {"butt": 0.0, "round": 0.5, "square": 0.5}
#: Length of a line that is a dot.
_DOT = 0.01


def traced(pixels: PixelArray, hand: Hand) -> str:
    """A picture as an SVG on the canvas, in lines if the set draws lines and they show the same, otherwise in areas.

    Args:
        pixels: uint8 [height, width, 3], black or grey on white.
        hand: of the set.
    """
    grey = without_colour(pixels)
    ink = ink_of(grey) or Ink(1.0, 0.0)
    if not hand.shaded:
        ink = replace(ink, grey=0.0)
    if hand.draws_lines:
        lines, width = _lines(grey, ink, hand)
        shades = [*_areas(grey, ink, full=False)] if ink.grey else []
        drawn = _document([*shades, *(_stroked(one, width, hand) for one in lines)])
        if alike(render_svg(drawn, pixels.shape[0]), grey) >= _FOLLOWS:
            # the model may have kept the width of a document in another hand
            own = min((one / hand.unit for one in hand.widths), key=lambda one: abs(one - width))
            return _document([*shades, *(_stroked(one, own, hand) for one in lines)])
    return _document([*_areas(grey, ink)])


def _document(elements: Sequence[ElementTree.Element]) -> str:
    root = ElementTree.Element("svg", {"xmlns": NAMESPACE, "viewBox": f"0 0 {UNITS} {UNITS}"})
    root.extend(elements)
    return ElementTree.tostring(root, encoding="unicode")


def alike(one: PixelArray, other: PixelArray) -> float:
    """Ink that is in the same place in two pictures, as a share of all ink."""
    dark = [1 - pixels[:, :, 0] / 255 for pixels in (one, other)]
    return float(np.minimum(*dark).sum() / max(1e-9, np.maximum(*dark).sum()))


def _lines(pixels: PixelArray, ink: Ink, hand: Hand) -> tuple[list[ElementTree.Element], float]:
    """The shapes along the middle of a picture's lines, and the width of these."""
    covered = _covered(pixels, ink)
    scale = UNITS / max(covered.shape)
    lines, width = centre_lines(covered, _BEYOND.get(hand.ends[0][0] if hand.ends else "", 0.5))
    step = None if hand.step is None else hand.step / hand.unit
    return [_shape(line * scale, width * scale, step) for line in lines], width * scale


def _covered(pixels: PixelArray, ink: Ink) -> BoolArray:
    """Where an enlarged picture has full ink."""
    height, width = pixels.shape[:2]
    times = max(2, round(_LARGE / max(height, width)))
    large = Image.fromarray(pixels).resize(
        (width * times, height * times), Image.Resampling.BICUBIC
    )
    areas = ink_areas(np.asarray(large), ink, times)
    return np.asarray(areas.dark > areas.full_from)


def _shape(line: Floats, width: float, step: float | None) -> ElementTree.Element:
    """A centre line as a shape without paint."""
    if len(line) == 1:
        return ElementTree.Element("path", {"d": f"M{_pair(line[0])}h{_DOT}"})
    circle = circle_of(line, _TOLERANCE)
    if circle is not None:
        (x, y), radius = circle
        return ElementTree.Element(
            "circle", {"cx": f"{x:.4f}", "cy": f"{y:.4f}", "r": f"{radius:.4f}"}
        )
    curves = tidied(fitted(line, _TOLERANCE, _CORNER, 0.6 * width), step, _LEVEL, _NEAR_GRID)
    closed = "z" if (line[0] == line[-1]).all() else ""
    return ElementTree.Element("path", {"d": _path(curves) + closed})


def _path(curves: Sequence[Floats]) -> str:
    """Lines and curves, each from where the one before ends, as commands."""
    parts = [f"M{_pair(curves[0][0])}"]
    for curve in curves:
        letter = "l" if len(curve) == 2 else "c"
        parts.append(letter + " ".join(_pair(point - curve[0]) for point in curve[1:]))
    return "".join(parts)


def _pair(point: Floats) -> str:
    return f"{point[0]:.4f} {point[1]:.4f}"


def _stroked(shape: ElementTree.Element, width: float, hand: Hand) -> ElementTree.Element:
    cap, join = hand.ends[0] if hand.ends else ("round", "round")
    shape.attrib |= {
        "fill": "none",
        "stroke": "currentColor",
        "stroke-width": f"{width:.4f}",
        "stroke-linecap": cap,
        "stroke-linejoin": join,
    }
    return shape


def _areas(pixels: PixelArray, ink: Ink, *, full: bool = True) -> Iterator[ElementTree.Element]:
    """Yield the areas of grey and, if wanted, of full ink."""
    root = parse_xml(ink_svg(pixels, ink))
    scale = UNITS / max(map(float, root.attrib["viewBox"].split()[2:]))
    for group in root:
        faint = float(group.get("opacity", "1"))
        is_grey = bool(ink.grey) and abs(faint - ink.grey) < 0.01
        if not full and not is_grey:
            continue
        level = round(255 * (1 - faint)) if is_grey else 0
        paint = f"#{level:02x}{level:02x}{level:02x}" if level else "currentColor"
        for path in group:
            place = path.get("transform", "translate(0,0)").removeprefix("translate(").rstrip(")")
            offset = np.array([float(one) for one in place.split(",")])
            curves = _absolute(path.attrib["d"], offset, scale)
            d = "".join(_path(one) + "z" for one in curves)
            yield ElementTree.Element("path", {"d": d, "fill": paint, "fill-rule": "evenodd"})


def _absolute(d: str, offset: Floats, scale: float) -> Iterator[list[Floats]]:
    """Yield the outlines of a path with absolute commands M, L, C and Z as lines and curves on the canvas."""
    curves: list[Floats] = []
    here = start = np.zeros(2)
    for letter, numbers in commands_of(d):
        points = (np.array(numbers).reshape(-1, 2) + offset) * scale
        if letter == "M":
            if curves:
                yield curves
            curves, here, start = [], points[0], points[0]
        elif letter in "LC":
            curves.append(np.concatenate([here[None], points]))
            here = points[-1]
        else:
            here = start
    if curves:
        yield curves
