"""An SVG document -> codes. Every number is rounded once; what codes can't say is an error, never left out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from xml.etree import ElementTree

from cm3core.errors import DataError
from cm3icons.svg_codes.alphabet import (
    CAPS,
    JOINS,
    NUM_OPACITIES,
    NUM_TONES,
    PAINTS,
    PER_UNIT,
    UNITS,
    WIDTHS_PER_UNIT,
    Alphabet,
    alphabet,
)
from cm3run.xml_text import parse_xml

NEXT_STEP = "leave the drawing out, or convert it to plain paths (for example with svgo)"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_BETWEEN = re.compile(r"[\s,]*")
#: Path command -> number of its numbers.
_NUMBERS = {"m": 2, "l": 2, "h": 1, "v": 1, "c": 6, "s": 4, "q": 4, "t": 2, "a": 7, "z": 0}
_STYLES = ("fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "fill-rule")
_OPACITIES = ("opacity", "fill-opacity", "stroke-opacity")
#: Attributes that say more than codes can.
_FOREIGN = ("transform", "style", "stroke-dasharray", "mask", "clip-path", "filter")
_GREY = {"black": 0, "currentcolor": 0, "white": 255, "silver": 192, "gray": 128, "grey": 128}

Point = tuple[float, float]


class Command(NamedTuple):
    """A command of a path as it is written: its letter and its numbers."""

    letter: str
    numbers: list[float]


def codes_of(svg: str) -> list[int]:
    """Codes of an SVG document, with the end.

    Raises:
        DataError: it is no SVG document, or has what the codes can't say.
    """
    root = parse_xml(svg)
    try:
        left, top, width, height = (float(value) for value in root.attrib["viewBox"].split())
        scale = UNITS / max(width, height)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise DataError(
            "SVG", f"can't be read ({error!r})", "give a document with a viewBox"
        ) from error
    writer = _Writer(
        scale, left - (max(width, height) - width) / 2, top - (max(width, height) - height) / 2
    )
    writer.walk(root, {}, 1.0)
    if not writer.codes:
        raise DataError("SVG", "shows nothing", "leave the drawing out")
    return [*writer.codes, writer.table.end]


def _foreign(what: str) -> DataError:
    return DataError("SVG", f"has {what}, which codes of paths can't say", NEXT_STEP)


class _Writer:
    """Writes elements as codes.

    Args:
        scale: canvas units of a unit of the document.
        left, top: where the canvas begins, in units of the document.
    """

    def __init__(self, scale: float, left: float, top: float) -> None:
        self.table: Alphabet = alphabet()
        self.codes: list[int] = []
        self._scale, self._left, self._top = scale, left, top
        self._paint: list[int] | None = None

    def walk(
        self, element: ElementTree.Element, inherited: Mapping[str, str], opacity: float
    ) -> None:
        """Write an element and those inside it, in the order in which they are painted."""
        name = element.tag.rpartition("}")[2]
        if name in ("title", "desc", "metadata"):
            return
        if name not in (
            "svg",
            "g",
            "path",
            "rect",
            "circle",
            "ellipse",
            "line",
            "polyline",
            "polygon",
        ):
            raise _foreign(f"<{name}>")
        for attribute in _FOREIGN:
            if element.get(attribute):
                raise _foreign(attribute)
        style = dict(inherited)
        style.update(
            {key: value for key in (*_STYLES, *_OPACITIES[1:]) if (value := element.get(key))}
        )
        opacity *= number_of(element.get("opacity") or "1")
        if name in ("svg", "g"):
            for child in element:
                self.walk(child, style, opacity)
        elif (paint := self._painted(style, opacity)) is not None:
            drawn = list(self._shape(name, element))
            if drawn:
                self.codes += [self._put("same", 0)] if paint == self._paint else paint
                self._paint = paint
                self.codes += drawn

    def _put(self, kind: str, value: int) -> int:
        code = self.table.code(kind, value)
        if code is None:
            _, number, lowest = self.table.kinds[kind]
            raise _foreign(f"a {kind} of {value} (codes say {lowest} to {lowest + number - 1})")
        return code

    def _painted(self, style: Mapping[str, str], opacity: float) -> list[int] | None:
        """Codes of a style; None: it paints nothing."""
        fill, stroke = style.get("fill", "black"), style.get("stroke", "none")
        width = number_of(style.get("stroke-width", "1")) * self._scale
        strokes = stroke != "none" and width > 0
        if fill == "none" and not strokes:
            return None
        if fill != "none" and strokes and _tone(fill) != _tone(stroke):
            raise _foreign("a fill and a stroke of two tones")
        evenodd = fill != "none" and style.get("fill-rule") == "evenodd"
        codes = [self._put("paint", PAINTS.index((fill != "none", evenodd, strokes)))]
        if tone := _tone(stroke if strokes else fill):
            codes.append(self._put("tone", tone))
        if strokes:
            cap, join = style.get("stroke-linecap", "butt"), style.get("stroke-linejoin", "miter")
            if cap not in CAPS or join not in JOINS:
                raise _foreign(f"line ends {cap!r} and {join!r}")
            codes.append(self._put("width", max(1, round(width * WIDTHS_PER_UNIT))))
            codes.append(self._put("ends", CAPS.index(cap) * len(JOINS) + JOINS.index(join)))
        used = [part for part, paints in (("fill", fill != "none"), ("stroke", strokes)) if paints]
        parts = {number_of(style.get(f"{part}-opacity", "1")) for part in used}
        if len(parts) > 1:
            raise _foreign("a fill and a stroke of two opacities")
        level = round(opacity * parts.pop() * (NUM_OPACITIES + 1))
        if level <= 0:
            return None
        if level <= NUM_OPACITIES:
            codes.append(self._put("opacity", level))
        return codes

    def _shape(self, name: str, element: ElementTree.Element) -> Iterator[int]:
        def own(key: str) -> float:
            return number_of(element.get(key) or "0")

        if name == "rect":
            corner = min(own("rx") or own("ry"), own("width") / 2, own("height") / 2)
            yield from self._known(
                name, (own("x"), own("y")), (own("width"), own("height"), corner)
            )
        elif name == "circle":
            yield from self._known(name, (own("cx"), own("cy")), (own("r"),))
        elif name == "ellipse":
            yield from self._known(name, (own("cx"), own("cy")), (own("rx"), own("ry")))
        else:
            yield from self._path(path_of(name, element))

    def _known(self, name: str, point: Point, lengths: tuple[float, ...]) -> Iterator[int]:
        if min(lengths[:2]) <= 0:
            return
        yield self._put(name, 0)
        for value in self._rounded(point):
            yield self._put("position", value)
        for length in lengths:
            yield self._put("length", round(length * self._scale * PER_UNIT))

    def _rounded(self, point: Point) -> tuple[int, int]:
        x, y = point
        factor = self._scale * PER_UNIT
        return round((x - self._left) * factor), round((y - self._top) * factor)

    def _path(self, d: str) -> Iterator[int]:
        """Codes of a path. A subpath that draws nothing is left out; what goes on behind `z` begins anew there."""
        pen: Point = (0.0, 0.0)
        start, at, first, drawing = pen, (0, 0), (0, 0), False
        for letter, numbers in commands_of(d):
            lower = letter.lower()
            if lower == "z":
                if drawing:
                    yield self._put("z", 0)
                pen, at, drawing = start, first, False
                continue
            points = points_of(letter, numbers, pen)
            rounded = [self._rounded(point) for point in points]
            if lower == "m":
                start, first, drawing = points[-1], rounded[-1], False
            else:
                if not drawing:
                    yield self._put("M", 0)
                    for value in at:
                        yield self._put("position", value)
                if lower == "a":
                    chord = math.dist(pen, points[-1]) * self._scale * PER_UNIT
                    yield from self._arc(
                        numbers, chord, (rounded[-1][0] - at[0], rounded[-1][1] - at[1])
                    )
                else:
                    yield from self._segment(lower, rounded, at)
                drawing = True
            pen, at = points[-1], rounded[-1]

    def _segment(
        self, letter: str, rounded: list[tuple[int, int]], at: tuple[int, int]
    ) -> Iterator[int]:
        """Codes of lines and curves."""
        steps = [value for x, y in rounded for value in (x - at[0], y - at[1])]
        if letter in "lhv":
            letter = "h" if steps[1] == 0 else "v" if steps[0] == 0 else "l"
            steps = {"h": steps[:1], "v": steps[1:], "l": steps}[letter]
        yield self._put(letter, 0)
        for step in steps:
            yield self._put("step", step)

    def _arc(self, numbers: list[float], chord: float, step: tuple[int, int]) -> Iterator[int]:
        """Codes of an arc; `chord`: the distance of its ends before rounding, as numbers are counted."""
        radii = [abs(one) * self._scale * PER_UNIT for one in numbers[:2]]
        large = bool(numbers[3])
        round_one = abs(radii[0] - radii[1]) < 0.5
        if round_one:
            yield self._put("a", 0)
            yield self._put("length", _radius(radii[0], chord, math.hypot(*step), large=large))
        elif numbers[2] % 180:
            raise _foreign("a turned arc")
        else:
            yield self._put("e", 0)
            for radius in radii:
                yield self._put("length", round(radius))
        yield self._put("flags", 2 * int(large) + int(bool(numbers[4])))
        for value in step:
            yield self._put("step", value)


def _radius(radius: float, chord: float, rounded_chord: float, *, large: bool) -> int:
    """The rounded radius with which an arc over the rounded chord is as high as it was.

    Rounded by itself, the radius of half a circle may be too large for it, and the arc becomes flat."""
    height = _height(radius, chord, large=large)
    low = math.floor(radius)
    candidates = (low - 1, low, low + 1)
    return min(
        (max(1, one) for one in candidates),
        key=lambda one: (abs(_height(one, rounded_chord, large=large) - height), abs(one - radius)),
    )


def _height(radius: float, chord: float, *, large: bool) -> float:
    """How far an arc is from its chord at most; a radius that is too small counts as half of the chord (SVG 1.1,
    appendix F.6.6)."""
    radius = max(radius, chord / 2)
    rest = math.sqrt(max(0.0, radius * radius - chord * chord / 4))
    return radius + rest if large else radius - rest


def points_of(letter: str, numbers: list[float], pen: Point) -> list[Point]:
    """The points of a command, absolute, in units of the document; the last one is where the pen goes."""
    x, y = pen if letter.islower() else (0.0, 0.0)
    lower = letter.lower()
    if lower == "h":
        return [(x + numbers[0], pen[1])]
    if lower == "v":
        return [(pen[0], y + numbers[0])]
    if lower == "a":
        return [(x + numbers[5], y + numbers[6])]
    return [(x + one, y + other) for one, other in zip(numbers[::2], numbers[1::2], strict=True)]


def path_of(name: str, element: ElementTree.Element) -> str:
    """The path of a path, line, polyline or polygon; "" for one of a single point.

    Args:
        name: of the element, without its namespace.
    """
    if name == "line":
        x1, y1, x2, y2 = (number_of(element.get(key) or "0") for key in ("x1", "y1", "x2", "y2"))
        return f"M{x1} {y1}L{x2} {y2}"
    if name in ("polyline", "polygon"):
        numbers = _NUMBER.findall(element.get("points") or "")
        return (
            f"M{' '.join(numbers)}{'z' if name == 'polygon' else ''}" if len(numbers) >= 4 else ""
        )
    return element.get("d") or ""


def commands_of(d: str) -> Iterator[Command]:
    """The commands of a path's `d`, repeated ones with their letter.

    Raises:
        DataError: it is not a path.

    >>> list(commands_of("M1 2 3 4h-5"))
    [Command(letter='M', numbers=[1.0, 2.0]), Command(letter='L', numbers=[3.0, 4.0]), Command(letter='h', numbers=[-5.0])]
    """
    place, letter = 0, ""
    while (place := _end(_BETWEEN, d, place)) < len(d):
        if d[place].isalpha():
            letter = d[place]
            place += 1
            if letter.lower() not in _NUMBERS:
                raise _foreign(f"a path with the command {letter!r}")
            if letter in "zZ":
                yield Command(letter, [])
                letter = ""
                continue
        if not letter:
            raise _foreign("a path whose numbers belong to no command")
        numbers: list[float] = []
        for number in range(_NUMBERS[letter.lower()]):
            place = _end(_BETWEEN, d, place)
            if letter in "aA" and number in (3, 4):  # flags may stand without anything between
                if d[place : place + 1] not in ("0", "1"):
                    raise _foreign("an arc without flags")
                numbers.append(float(d[place]))
                place += 1
                continue
            match = _NUMBER.match(d, place)
            if match is None:
                raise _foreign(f"a path that breaks off in the command {letter!r}")
            numbers.append(float(match.group()))
            place = match.end()
        yield Command(letter, numbers)
        letter = {"M": "L", "m": "l"}.get(letter, letter)


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    match = pattern.match(text, place)
    return place if match is None else match.end()


def number_of(text: str) -> float:
    """A length in units of the document.

    Raises:
        DataError: it is no number.
    """
    match = _NUMBER.fullmatch(text.strip().removesuffix("px"))
    if match is None:
        raise _foreign(f"a length {text!r}")
    return float(match.group())


def _tone(colour: str) -> int:
    """Grey in steps above black, 0..`NUM_TONES`."""
    text = colour.strip().lower()
    if text in _GREY:
        level = _GREY[text]
    else:
        digits = text.removeprefix("#")
        if (
            not text.startswith("#")
            or len(digits) not in (3, 6)
            or not re.fullmatch("[0-9a-f]+", digits)
        ):
            raise _foreign(f"the paint {colour!r}")
        width = len(digits) // 3
        red, green, blue = (
            int(digits[at : at + width] * (3 - width), 16) for at in range(0, len(digits), width)
        )
        if max(red, green, blue) - min(red, green, blue) > 8 * width:
            raise _foreign(f"the colour {colour}")
        level = red
    return round(level / 255 * NUM_TONES)
