"""Drawings of the memory in the form of a set, by geometry alone: lines in the set's width, ends and paint, as large as the
set draws. No model draws them, so they show the thing; each is an adaptation of one document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from cm3core.errors import DataError, MissingPackageError
from cm3icons.complete.canvas import local_name, on_canvas, shapes_of, style_of, within
from cm3icons.complete.hand import Hand
from cm3icons.complete.tracing import traced
from cm3icons.svg_codes.reading import number_of
from cm3plugins.datasets.svg_folder.reading import MOST_BYTES, SHAPES, SvgFile, parsed
from cm3plugins.svg import render_svg
from cm3run.nearness import nearness
from cm3run.xml_text import parse_xml

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3icons.complete.documents import Shown

#: Pixels per side in which a drawing is traced that has areas where the set has lines, or the other way round.
_TRACED = 256
#: Share of an adaptation's elements that are painted as the set paints, at least.
_PAINTED = 0.9
#: Attributes that change what a shape alone shows.
_MORE = ("transform", "stroke-dasharray", "fill-opacity", "stroke-opacity")


@dataclass(frozen=True, eq=False)
class Adaptation:
    """A version of a thing in the form of a set.

    Args:
        document: that was adapted.
        svg: as a file of the set.
        pixels: rendered, in black.
        nearness: to the document.
    """

    document: Shown
    svg: str
    pixels: PixelArray
    nearness: float


def adaptation(things: Sequence[Shown], hand: Hand, style: str, side: int) -> Adaptation | None:
    """The version of a thing that can best be given a set's form: in the set's style, first those whose own lines or areas
    stay, then those that are traced; None: none is painted as the set paints.

    Args:
        things: its versions, those nearest in hand first.
        hand, style: of the set.
        side: pixels per side of the picture.
    """
    kind = style.split()[:1]
    files: list[tuple[bool, Shown, SvgFile]] = []
    for one in things:
        if one.original is None or len(one.original) > MOST_BYTES:
            continue
        if not set(kind) <= set(one.style.split()):
            continue
        with suppress(DataError):  # more than plain shapes in one colour
            file = parsed(one.original)
            files.append((_keeps_shapes(file, hand), one, file))
    for _, one, file in sorted(files, key=lambda each: not each[0]):
        try:
            drawn = adapted(file, hand, one.small)
        # a path that breaks off; vtracer is missing, which a model that writes drawings does not need
        except (DataError, MissingPackageError):
            continue
        if hand.paint_share(drawn) >= _PAINTED:
            svg = hand.written(drawn)
            pixels = render_svg(parsed(svg.encode()).svg, side)
            return Adaptation(one, svg, pixels, nearness(pixels, one.pixels))
    return None


def adapted(file: SvgFile, hand: Hand, small: float = 1.0) -> str:
    """A drawing in the form of a set, on the canvas; `Hand.written` makes it a file of the set.

    Lines stay where they are, if the set has lines, too; the usual width of a drawing becomes the set's, others change
    alike. Areas whose middle is a line become lines in such a set. Lines become areas in a set of areas.

    Args:
        file: in one colour.
        hand: of the set.
        small: how far it reaches at least, as a share of what the set's drawings do.
    """
    if not _keeps_shapes(file, hand):
        drawn = traced(render_svg(file.svg, _TRACED), hand)
    elif hand.draws_lines:
        drawn = _in_lines_of(on_canvas(file.svg), hand)
    else:
        drawn = on_canvas(file.svg)
    return within(drawn, small * hand.reach[0], hand.reach[1])


def _keeps_shapes(file: SvgFile, hand: Hand) -> bool:
    """Whether a drawing's shapes can stay as they are: lines in a set of lines, areas in one of areas."""
    root = parse_xml(file.svg)
    strokes = any(style_of(one)["stroke"] != "none" for one in shapes_of(root))
    return strokes == hand.draws_lines and _is_plain(root)


def _is_plain(root: ElementTree.Element) -> bool:
    """Whether the shapes alone say what is seen."""
    return not any(
        one.get(key)
        for one in root.iter()
        for key in (*_MORE, *(() if local_name(one) in SHAPES else ("opacity",)))
    )


def _in_lines_of(svg: str, hand: Hand) -> str:
    """A drawing on the canvas with the set's usual width instead of its own, others wider or thinner alike, and with the
    set's ends of lines."""
    root = parse_xml(svg)
    lines = [one for one in root if one.get("stroke") != "none"]
    widths = Counter(number_of(one.attrib["stroke-width"]) for one in lines)
    [(usual, _)] = widths.most_common(1)
    wider = hand.widths[0] / hand.unit / max(usual, 0.01)
    cap, join = hand.ends[0]
    for one in lines:
        width = number_of(one.attrib["stroke-width"]) * wider
        one.attrib |= {
            "stroke-width": f"{width:.4f}",
            "stroke-linecap": cap,
            "stroke-linejoin": join,
        }
    return ElementTree.tostring(root, encoding="unicode")
