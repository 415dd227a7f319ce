"""One SVG file of a user -> plain elements in one colour. The file may come from anybody: only known elements and
attributes are taken over, nothing that it names is opened, and what can't be taken over is an error with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from cm3core.errors import DataError
from cm3core.files import check_regular, open_regular
from cm3run.xml_text import parse_xml

#: Icons have a few thousand bytes; more is an illustration, or a picture in disguise.
MOST_BYTES, MOST_ELEMENTS, MOST_LEVELS = 1 << 18, 2000, 50
NAMESPACE = "http://www.w3.org/2000/svg"
SHAPES = ("path", "rect", "circle", "ellipse", "line", "polyline", "polygon")
#: Attributes of shapes that say where they are.
GEOMETRY = (
    "d", "points", "x", "y", "x1", "y1", "x2", "y2", "width", "height", "rx", "ry", "cx", "cy", "r", "transform",
)  # fmt: skip  # a name a line is harder to read
#: Attributes that elements inherit, and those that they don't.
INHERITED = (
    "fill", "stroke", "stroke-width", "stroke-linecap", "stroke-linejoin", "fill-rule", "fill-opacity",
    "stroke-opacity", "color",
)  # fmt: skip  # a name a line is harder to read
OWN = ("opacity", "clip-path", "mask", "filter", "stroke-dasharray", "display", "visibility")
_IGNORED = ("title", "desc", "metadata", "defs", "style")
#: Values that are as good as no attribute.
_NOTHING = {
    "clip-path": "none", "mask": "none", "filter": "none", "stroke-dasharray": "none",
    "display": "inline", "visibility": "visible", "opacity": "1",
}  # fmt: skip  # a pair a line is harder to read
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_LENGTH = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:px|%)?\s*")
_NEXT = "leave it out, or export it as plain paths (for example with svgo)"

Box: TypeAlias = tuple[float, float, float, float]
Rules: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class SvgFile:
    """A user's drawing.

    Args:
        svg: its elements alone, painted in `currentColor` where the file has its one colour, on the smallest square
            around its view box.
        box: its view box: left, top, width, height.
        root: the attributes of the file's `<svg>`.
        paint: its one colour as the file writes it; "": the default, black.
    """

    svg: str
    box: Box
    root: Mapping[str, str] = field(repr=False)
    paint: str


def read_svg(path: Path, *, one_paint: bool = True) -> SvgFile:
    """Read a file; `one_paint` as in `parsed`.

    Raises:
        DataError: it can't be read, is too large, is no SVG, or has what can't be taken over.
    """
    place = str(path)
    check_regular(path, place)
    try:
        with open_regular(path) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise DataError(
            place, f"can't be read: {error.strerror}", "correct its permissions"
        ) from error
    if len(content) > MOST_BYTES:
        raise DataError(place, f"has more than {MOST_BYTES:,} bytes", _NEXT)
    try:
        return parsed(content, one_paint=one_paint)
    except DataError as error:
        raise DataError(place, error.cause, _NEXT) from error


def parsed(content: bytes, *, one_paint: bool = True) -> SvgFile:
    """Read the content of a file; see `read_svg`. `one_paint`: refuse several colours, and replace the one by
    `currentColor`."""
    # drawing programs name the document type that is published for SVG
    root = parse_xml(content, "SVG", _NEXT, most_bytes=MOST_BYTES, public_type=True)
    if root.tag not in ("svg", f"{{{NAMESPACE}}}svg"):
        raise _refused("has no <svg> at its root")
    box = box_of(root.attrib)
    taken = _Taken(root, box)
    plain = ElementTree.Element("svg", {"xmlns": NAMESPACE, "viewBox": _square(box)})
    plain.extend(list(taken.children(root, taken.paints(root, {}), 0)))
    paint = _one_paint(plain) if one_paint else ""
    return SvgFile(ElementTree.tostring(plain, encoding="unicode"), box, dict(root.attrib), paint)


def box_of(attributes: Mapping[str, str]) -> Box:
    """The view box of an `<svg>`, or its width and height.

    >>> box_of({"viewBox": "0 0 16 16"}), box_of({"width": "20px", "height": "20"})
    ((0.0, 0.0, 16.0, 16.0), (0.0, 0.0, 20.0, 20.0))
    """
    stated = attributes.get("viewBox")
    texts = ["0", "0", attributes.get("width", ""), attributes.get("height", "")]
    numbers = [
        _length(one) for one in (texts if stated is None else re.split(r"[\s,]+", stated.strip()))
    ]
    if len(numbers) != 4 or any(one is None for one in numbers):
        raise _refused("has neither a viewBox nor a width and a height")
    left, top, width, height = (float(one or 0) for one in numbers)
    if not (0 < width < 1e6 and 0 < height < 1e6 and abs(left) < 1e6 and abs(top) < 1e6):
        raise _refused("has an empty or huge viewBox")
    return left, top, width, height


def _square(box: Box) -> str:
    left, top, width, height = box
    side = max(width, height)
    return f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"


def _refused(cause: str) -> DataError:
    return DataError("SVG", cause, _NEXT)


def _length(text: str) -> float | None:
    match = _LENGTH.fullmatch(text)
    return None if match is None else float(match[1])


def _name(element: ElementTree.Element) -> str:
    """Local name of an SVG element; "" for elements of other namespaces, such as an editor's."""
    tag = element.tag
    if not isinstance(tag, str):
        return ""
    space, _, name = tag.rpartition("}")
    return name if space in ("", f"{{{NAMESPACE}") else ""


class _Taken:
    """Takes elements over: styles become attributes, groups keep what their children inherit.

    Args:
        root: the file's `<svg>`.
        box: its view box.
    """

    def __init__(self, root: ElementTree.Element, box: Box) -> None:
        self._box, self._left = box, MOST_ELEMENTS
        self._rules = dict(_class_rules(root))
        self._clips = {
            one.get("id"): one for one in root.iter() if _name(one) in ("clipPath", "mask")
        }

    def paints(self, element: ElementTree.Element, inherited: Mapping[str, str]) -> dict[str, str]:
        """What an element's children inherit."""
        own = self._style(element)
        return dict(inherited) | {key: own[key] for key in INHERITED if key in own}

    def children(
        self, parent: ElementTree.Element, inherited: Mapping[str, str], level: int
    ) -> Iterator[ElementTree.Element]:
        """Yield the elements inside one, each with all that it inherits."""
        if level > MOST_LEVELS:
            raise _refused(f"has elements nested deeper than {MOST_LEVELS} levels")
        for element in parent:
            name = _name(element)
            if name in ("", *_IGNORED, "clipPath", "mask"):
                continue
            self._left -= 1
            if self._left < 0:
                raise _refused(f"has more than {MOST_ELEMENTS:,} elements")
            style = self._style(element)
            if style.get("display") == "none" or style.get("visibility") in ("hidden", "collapse"):
                continue
            own = {
                key: style[key]
                for key in OWN
                if style.get(key, _NOTHING.get(key)) != _NOTHING.get(key)
            }
            for key in ("clip-path", "mask"):
                if key in own and self._is_whole(own[key]):
                    del own[key]
            for key in ("clip-path", "mask", "filter"):
                if key in own:  # without what it names, the drawing would look otherwise
                    raise _refused(f"has a {key}, which is not possible yet")
            if name == "g":
                if element.get("transform"):
                    own["transform"] = element.get("transform", "")
                group = ElementTree.Element("g", own)
                group.extend(
                    list(self.children(element, self.paints(element, inherited), level + 1))
                )
                yield group
            elif name in SHAPES:
                place = {key: element.get(key, "") for key in GEOMETRY if element.get(key)}
                yield ElementTree.Element(name, place | self.paints(element, inherited) | own)
            else:
                raise _refused(f"has <{name[:40]}>, which is no plain shape")

    def _style(self, element: ElementTree.Element) -> dict[str, str]:
        """The presentation of an element: attributes, then rules of its classes, then its `style`."""
        known = (*INHERITED, *OWN)
        style = {key: element.get(key, "").strip() for key in known if element.get(key)}
        for name in element.get("class", "").split():
            style |= self._rules.get(name, {})
        return style | _declarations(element.get("style", ""))

    def _is_whole(self, reference: str) -> bool:
        """Whether a clip path or mask is a rectangle around everything, as design programs write it."""
        clip = self._clips.get(reference.removeprefix("url(#").removesuffix(")"))
        if clip is None or len(clip) != 1 or _name(clip[0]) not in ("rect", "path"):
            return False
        left, top, width, height = self._box
        if _name(clip[0]) == "rect":
            x, y, w, h = (
                _length(clip[0].get(key, "0")) or 0 for key in ("x", "y", "width", "height")
            )
            return x <= left and y <= top and x + w >= left + width and y + h >= top + height
        outline = re.sub(r"[\s,]", "", clip[0].get("d", "")).lower()
        return outline in (
            f"m{left:g}{top:g}h{width:g}v{height:g}h-{width:g}z",
            f"m{left:g}{top:g}h{width:g}v{height:g}h{left:g}z",
        )


def _declarations(text: str) -> dict[str, str]:
    """The known declarations of a `style`."""
    known = (*INHERITED, *OWN)
    pairs = (one.partition(":")[::2] for one in text.split(";"))
    return {
        key: value.strip()
        for name, value in pairs
        if (key := name.strip()) in known and value.strip()
    }


def _class_rules(root: ElementTree.Element) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rules for single classes in the file's `<style>` elements."""
    for element in root.iter():
        if _name(element) != "style":
            continue
        for selectors, body in _RULE.findall(_COMMENT.sub("", element.text or "")):
            for selector in selectors.split(","):
                if re.fullmatch(r"\s*\.[\w-]+\s*", selector):
                    yield selector.strip()[1:], _declarations(body)


#: Paints of no hue: black, or what the page decides.
BLACK = frozenset(("black", "#000", "#000000", "currentcolor", "inherit"))


def _one_paint(plain: ElementTree.Element) -> str:
    """Paint a drawing of one colour in `currentColor`; return the paint as it was written.

    Raises:
        DataError: it has several colours, or paint that is no colour.
    """
    used: dict[str, str] = {}  # paint in lower case, "" for all blacks -> as it was written first
    for element in plain.iter():
        if element.tag not in SHAPES:
            continue
        for key, default in (("fill", ""), ("stroke", "none")):
            written = element.get(key, default)
            paint = written.lower()
            if paint.startswith("url"):
                raise _refused("is painted with a gradient or a pattern")
            if paint in ("none", "transparent"):
                element.set(key, "none")
            elif paint in BLACK or not paint:
                element.set(key, "currentColor")
                used[""] = used.get("") or written
            else:
                used.setdefault(paint, written)
    others = [one for one in used if one]
    if not others:
        return used.get("", "")
    colours = [_rgb(one) for one in others]
    if "" not in used and _are_one(colours):
        for element in plain.iter():
            for key in ("fill", "stroke"):
                if element.get(key, "").lower() in others:
                    element.set(key, "currentColor")
        return used[others[0]]
    if all(one is not None and max(one) - min(one) <= _NEAR for one in colours):
        return used.get("", used[others[0]])  # greys
    number = len(used)
    raise _refused(f"has {number} colours; drawings in several colours are not possible yet")


#: Greatest difference of channels, of 255, between colours that count as one, and within a grey.
_NEAR = 16
_NAMED = {"white": (255,) * 3, "silver": (192,) * 3, "gray": (128,) * 3, "grey": (128,) * 3}


def _rgb(paint: str) -> tuple[int, ...] | None:
    """The channels of a colour in hexadecimal digits, or of a named grey; None for others."""
    digits = paint.removeprefix("#")
    if not paint.startswith("#") or not re.fullmatch("[0-9a-f]{3}|[0-9a-f]{6}", digits):
        return _NAMED.get(paint)
    width = len(digits) // 3
    return tuple(
        int(digits[at : at + width] * (3 - width), 16) for at in range(0, len(digits), width)
    )


def _are_one(colours: Sequence[tuple[int, ...] | None]) -> bool:
    """Whether colours are one colour, which a set may have written in several ways."""
    if len(colours) == 1:
        return True
    known = [one for one in colours if one is not None]
    channels = zip(*known, strict=True)
    return len(known) == len(colours) and all(max(one) - min(one) <= _NEAR for one in channels)
