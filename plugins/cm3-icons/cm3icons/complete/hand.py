"""The hand of a set of icons, measured from its files: canvas, grid, widths and ends of lines, paint. A drawing of the
model is written in that form.

Legend: drawings of the model lie on a canvas of `UNITS` units, in steps of 1 / `PER_UNIT`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar
from xml.etree import ElementTree

import numpy as np

from cm3core.errors import DataError
from cm3icons.complete.canvas import DEFAULTS, dots_as_lines, local_name, reach, shapes_of, style_of
from cm3icons.svg_codes.alphabet import PER_UNIT, UNITS
from cm3icons.svg_codes.reading import codes_of, commands_of
from cm3icons.svg_codes.writing import svg_of
from cm3plugins.datasets.svg_folder.reading import NAMESPACE, Box, SvgFile
from cm3plugins.svg import render_svg
from cm3run.xml_text import parse_xml

#: A canvas unit as a share of which grids are looked for, and the share of a set's points that must lie on its grid.
_STEPS = (16, 8, 4, 2, 1, 0.5, 0.25, 0.125)
_ON_GRID = 0.6
#: Share of a set's lines from which their width, or their ends, belong to its hand.
_USUAL = 0.03
#: Share of the files from which an attribute of `<svg>` belongs to the hand.
_COMMON = 0.5
_ROOT = (
    "xmlns", "width", "height", "viewBox", "fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin",
    "fill-rule", "clip-rule", "color",
)  # fmt: skip  # a name a line is harder to read
#: Number of decimals of a set's numbers that are kept at most.
_MOST_DECIMALS = 3
#: The most files from which a hand is measured, and pixels per side in which they are drawn for it.
_SAMPLED, _SIDE = 400, 96

T = TypeVar("T")
Point: TypeAlias = tuple[float, float]
Move: TypeAlias = Callable[[float], float]


@dataclass(frozen=True)
class Hand:
    """How a set draws and writes.

    Args:
        box: its usual view box: left, top, width, height.
        root: the attributes that its `<svg>` elements share, in their order.
        paint: its colour as its files write it; "": black by default.
        step: the grid on which most points lie; None: they lie on none.
        decimals: of its numbers.
        widths: of its lines.
        ends: the pairs of line cap and line join that it uses, the usual one first.
        kinds: what its elements are: "fill", "stroke", "both".
        shaded: whether it uses greys or opacity.
        reach: how far the ink of most drawings reaches from the middle, at least and at most, as a share of the way to the
            canvas's edges: the middle half of them.
    """

    box: Box
    root: Mapping[str, str]
    paint: str
    step: float | None
    decimals: int
    widths: tuple[float, ...]
    ends: tuple[tuple[str, str], ...]
    kinds: frozenset[str]
    shaded: bool = False
    reach: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, files: Sequence[SvgFile]) -> Hand:
        """Measure the hand of a set's drawings, at least one."""
        files = files[:: max(1, len(files) // _SAMPLED)]
        [(box, _)] = Counter(file.box for file in files).most_common(1)
        unit = max(box[2:]) / UNITS
        widths: Counter[float] = Counter()
        ends: Counter[tuple[str, str]] = Counter()
        kinds: Counter[str] = Counter()
        shades: Counter[bool] = Counter()
        points: list[float] = []
        for file in files:
            for element in shapes_of(parse_xml(file.svg)):
                style = style_of(element)
                kinds[_kind(style)] += 1
                shades[_is_shaded(element, style)] += 1
                if style["stroke"] != "none":
                    scale = max(box[2:]) / max(file.box[2:])
                    widths[round(_number(style["stroke-width"]) * scale, 3)] += 1
                    ends[style["stroke-linecap"], style["stroke-linejoin"]] += 1
                if file.box == box:
                    points += _anchors(element)
        return cls(
            box,
            _common_root(files, box),
            Counter(file.paint for file in files).most_common(1)[0][0],
            _step(points, unit),
            _decimals(points),
            tuple(_usual(widths)),
            tuple(_usual(ends)),
            frozenset(_usual(kinds)),
            True in _usual(shades),
            _reach(files),
        )

    @property
    def unit(self) -> float:
        """Units of the set for one unit of the model's canvas."""
        return max(self.box[2:]) / UNITS

    @property
    def draws_lines(self) -> bool:
        """Whether lines belong to it, alone or beside areas."""
        return bool(self.widths and self.kinds & {"stroke", "both"})

    def paint_share(self, svg: str) -> float:
        """The share of a drawing's elements that are painted as the set paints: lines or areas, with a width and with
        ends that it uses; 0 without elements.

        Args:
            svg: on the model's canvas.
        """
        elements = list(shapes_of(parse_xml(svg)))
        return sum(map(self._is_own, elements)) / len(elements) if elements else 0.0

    def _is_own(self, element: ElementTree.Element) -> bool:
        style = style_of(element)
        if _kind(style) not in self.kinds:
            return False
        if style["stroke"] == "none":
            return True
        width = _number(style["stroke-width"]) * self.unit
        near = any(abs(width - one) <= 0.0626 * self.unit for one in self.widths)
        return near and (style["stroke-linecap"], style["stroke-linejoin"]) in self.ends

    def written(self, svg: str) -> str:
        """A drawing as a file of the set.

        Points within half a step of the model's from a line of the set's grid are moved there; other numbers are
        rounded. Widths of lines become the nearest of the set's, and ends that it never uses its usual ones. Greys become
        the set's paint with opacity.

        Args:
            svg: on the model's canvas.
        """
        root = ElementTree.Element("svg", dict(self.root))
        root.text = root.tail = "\n"
        for element in shapes_of(parse_xml(svg)):
            style = self._style(element)
            name, place = local_name(element), element
            if name == "path" and style.get("stroke-linecap") == "butt":
                d = dots_as_lines(element.get("d", ""), _number(style["stroke-width"]) / self.unit)
                place = ElementTree.Element(name, {"d": d})
            ElementTree.SubElement(root, name, self._place(place) | self._paints(style))
        for index, one in enumerate(root):
            one.tail = "\n  " if index + 1 < len(root) else "\n"
        root.text = "\n  "
        return ElementTree.tostring(root, encoding="unicode")

    def _style(self, element: ElementTree.Element) -> dict[str, str]:
        """An element's paint, with the set's width and ends of lines; an area has none."""
        style = style_of(element)
        if style["stroke"] != "none":
            width = _number(style["stroke-width"]) * self.unit
            if self.widths:
                width = min(self.widths, key=lambda one: abs(one - width))
            style["stroke-width"] = _text(width, _MOST_DECIMALS)
            ends = style["stroke-linecap"], style["stroke-linejoin"]
            if self.ends and ends not in self.ends:
                ends = self.ends[0]
            style["stroke-linecap"], style["stroke-linejoin"] = ends
        else:
            for key in ("stroke-width", "stroke-linecap", "stroke-linejoin"):
                del style[key]
        return style

    def _paints(self, style: dict[str, str]) -> dict[str, str]:
        """The attributes of paint that an element of the set needs."""
        share = 1.0
        for key in ("fill", "stroke"):
            if style[key].startswith("#"):  # a grey: the set's paint, fainter
                share, style[key] = 1 - int(style[key][1:3], 16) / 255, "currentColor"
            if style[key] == "currentColor":
                style[key] = self.paint or ("" if key == "fill" else "#000")
        style["opacity"] = _text(_number(style["opacity"]) * share, 2)
        own = {}
        for key, value in style.items():
            inherited = self.root.get(key, DEFAULTS[key]) if key != "opacity" else "1"
            if value != inherited:
                own[key] = value or "#000"
        return own

    def _place(self, element: ElementTree.Element) -> dict[str, str]:
        """The attributes of an element's geometry, on the set's canvas."""
        left, top = self._offset
        x, y = self._moved(left), self._moved(top)
        name = local_name(element)
        if name == "path":
            return {"d": self._path(element.get("d", ""))}

        def own(key: str) -> float:
            return _number(element.get(key, "0"))

        length = self._moved(0.0)
        if name == "rect":
            right, bottom = x(own("x") + own("width")), y(own("y") + own("height"))
            values = {"x": x(own("x")), "y": y(own("y"))}
            values |= {
                "width": right - values["x"],
                "height": bottom - values["y"],
                "rx": length(own("rx")),
            }
        elif name == "circle":
            values = {"cx": x(own("cx")), "cy": y(own("cy")), "r": length(own("r"))}
        else:
            values = {
                "cx": x(own("cx")),
                "cy": y(own("cy")),
                "rx": length(own("rx")),
                "ry": length(own("ry")),
            }
        return {
            key: _text(value, self.decimals)
            for key, value in values.items()
            if value or key != "rx"
        }

    @property
    def _offset(self) -> Point:
        """Where the model's canvas begins, in units of the set: its square lies around the view box."""
        left, top, width, height = self.box
        side = max(width, height)
        return left - (side - width) / 2, top - (side - height) / 2

    def _moved(self, start: float) -> Move:
        """A function from a coordinate of the model's canvas to one of the set, on the grid where it is near."""

        def moved(value: float) -> float:
            exact = start + value * self.unit
            if self.step is not None:
                near = round(exact / self.step) * self.step
                if abs(near - exact) < self.unit / PER_UNIT / 2 - 1e-9:
                    return near
            return round(exact, self.decimals)

        return moved

    def _path(self, d: str) -> str:
        """The commands of a path; steps begin where the written ones have led, so that rounding does not add up."""
        left, top = self._offset
        x_of, y_of = self._moved(left), self._moved(top)
        exact = start = (0.0, 0.0)
        parts = []
        for letter, numbers in commands_of(d):
            at = (x_of(exact[0]), y_of(exact[1]))
            if letter == "z":
                parts.append("z")
                exact = start
                continue
            own: list[float]
            if letter == "M":
                exact = start = (numbers[0], numbers[1])
                own = [x_of(exact[0]), y_of(exact[1])]
            elif letter == "h":
                exact = exact[0] + numbers[0], exact[1]
                own = [x_of(exact[0]) - at[0]]
            elif letter == "v":
                exact = exact[0], exact[1] + numbers[0]
                own = [y_of(exact[1]) - at[1]]
            else:
                inner, end = numbers[:-2], numbers[-2:]
                before = exact
                exact = exact[0] + end[0], exact[1] + end[1]
                if letter == "a":
                    own = [inner[0] * self.unit, inner[1] * self.unit, *inner[2:]]
                else:  # control points stay where they are
                    pairs = zip(inner[::2], inner[1::2], strict=True)
                    own = [
                        value
                        for u, v in pairs
                        for value in (
                            left + (before[0] + u) * self.unit - at[0],
                            top + (before[1] + v) * self.unit - at[1],
                        )
                    ]
                own += [x_of(exact[0]) - at[0], y_of(exact[1]) - at[1]]
            parts.append(letter + _numbers(own, self.decimals))
        return "".join(parts)


def read_drawing(svg: str) -> str:
    """A drawing of the set as the model would write it, on its canvas.

    Raises:
        DataError: it has what the model's codes can't say.
    """
    return svg_of(codes_of(svg))


def _reach(files: Sequence[SvgFile]) -> tuple[float, float]:
    """The reaches between which the middle half of the drawings lie."""
    every = [reach(render_svg(file.svg, _SIDE)) for file in files]
    low, high = np.quantile(every, (0.25, 0.75)).round(3).tolist()
    return low, high


def _is_shaded(element: ElementTree.Element, style: Mapping[str, str]) -> bool:
    faint = any(
        element.get(key, "1") != "1" for key in ("opacity", "fill-opacity", "stroke-opacity")
    )
    return faint or style["fill"].startswith("#") or style["stroke"].startswith("#")


def _kind(style: Mapping[str, str]) -> str:
    filled, stroked = style["fill"] != "none", style["stroke"] != "none"
    return "both" if filled and stroked else "stroke" if stroked else "fill" if filled else "none"


def _usual(counts: Counter[T]) -> list[T]:
    """What a set uses more than now and then, the most frequent first."""
    total = sum(counts.values())
    return [value for value, number in counts.most_common() if number >= _USUAL * total]


def _common_root(files: Sequence[SvgFile], box: Box) -> dict[str, str]:
    """The attributes that most files give their `<svg>`."""
    counts = Counter(
        (key, value) for file in files for key, value in file.root.items() if key in _ROOT
    )
    order = [key for file in files for key in file.root]
    common = {
        key: value for (key, value), number in counts.items() if number >= _COMMON * len(files)
    }
    root = {"xmlns": NAMESPACE}
    root |= {key: common[key] for key in sorted(common, key=order.index)}
    return root | {"viewBox": " ".join(f"{value:g}" for value in box)}


def _anchors(element: ElementTree.Element) -> Iterator[float]:
    """Yield the coordinates where a path's commands end."""
    x = y = 0.0
    start = (x, y)
    try:
        commands = list(commands_of(element.get("d", "")))
    except DataError:
        return
    for letter, numbers in commands:
        lower = letter.lower()
        own_x, own_y = (x, y) if letter.islower() else (0.0, 0.0)
        if lower == "z":
            x, y = start
            continue
        x, y = (
            (own_x + numbers[0], y)
            if lower == "h"
            else (x, own_y + numbers[0])
            if lower == "v"
            else (own_x + numbers[-2], own_y + numbers[-1])
        )
        if lower == "m":
            start = (x, y)
        yield from (x, y)


def _step(points: Sequence[float], unit: float) -> float | None:
    """The coarsest grid on which most points lie."""
    for share in _STEPS:
        if share > unit:
            continue
        on = sum(abs(one / share - round(one / share)) * share < 0.003 for one in points)
        if points and on >= _ON_GRID * len(points):
            return float(share)
    return None


def _decimals(points: Sequence[float]) -> int:
    """The number of decimals with which nearly all points are written."""
    for decimals in range(1, _MOST_DECIMALS):
        exact = sum(abs(one - round(one, decimals)) < 10 ** -(decimals + 2) for one in points)
        if exact >= 0.95 * len(points):
            return max(2, decimals)
    return _MOST_DECIMALS


def _number(text: str) -> float:
    try:
        value = float(text.removesuffix("px"))
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _text(value: float, decimals: int) -> str:
    """A number as SVG optimisers write it.

    >>> _text(0.5, 2), _text(-0.25, 2), _text(3.0, 2), _text(-0.001, 2)
    ('.5', '-.25', '3', '0')
    """
    text = f"{value:.{decimals}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if text in ("-0", "0", ""):
        return "0"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _numbers(values: Sequence[float], decimals: int) -> str:
    """Numbers of a path, with a space only where it is needed."""
    text = ""
    for value in values:
        own = _text(value, decimals)
        text += own if not text or own.startswith("-") else f" {own}"
    return text
