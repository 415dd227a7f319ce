"""Names of things from file names, and style words from how drawings are painted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from cm3plugins.datasets.svg_folder.reading import SHAPES, SvgFile
from cm3plugins.svg import render_svg
from cm3run.xml_text import parse_xml

_WORD = re.compile(r"[^\W\d_]+|\d+")
#: Where a word begins in the middle of letters: bellOff, HTMLFile.
_INNER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
#: Share of the files that must have a word at the end or the beginning of their names for it to be no part of names.
_COMMON = 0.8
#: Fewer files have common words by chance.
_ENOUGH = 8
#: Number of drawings from which a set's style is told, and pixels per side of their pictures.
_SAMPLED, _SIDE = 200, 96
#: Width in pixels from which ink is an area, an eighth of the picture; and the share of the ink inside areas from which
#: a drawing counts as filled.
_LINE, _AREAS = 11, 0.1
#: Lines, areas, and areas of several opacities.
KINDS = ("outline", "filled", "duotone")
_OPACITIES = ("opacity", "fill-opacity", "stroke-opacity")


def names_of(stems: Sequence[str]) -> list[str]:
    """The things that files show: the words of their names, without those that nearly all begin or end with, and without
    numbers there that many share, which are sizes.

    >>> names_of([f"ic_{one}_24px" for one in ("bell-off", "cloudRain", "a", "b", "c", "d", "e", "f")])[:2]
    ['bell off', 'cloud rain']
    >>> sorted({*names_of([f"{one}-{size}" for size in (16, 24) for one in ("bell", "sun", *"abcdef")])})[-2:]
    ['f', 'sun']
    >>> names_of(["bell-off", "Bell"])
    ['bell off', 'bell']
    """
    words = [_WORD.findall(_INNER.sub(" ", stem).lower()) or [stem.lower()] for stem in stems]
    if len(words) >= _ENOUGH:
        for end in (0, -1):
            while shared := _shared(words, end):
                for own in words:
                    if len(own) > 1 and own[end] in shared:
                        own.pop(end)
    return [" ".join(own) for own in words]


def _shared(words: Sequence[Sequence[str]], end: int) -> set[str]:
    """The word that nearly all names have at this end, or the few numbers of which they have one; each is many names'."""
    counts = Counter(own[end] for own in words if len(own) > 1)
    [(word, number)] = counts.most_common(1) or [("", 0)]
    if number >= _COMMON * len(words):
        return {word}
    sizes = {one: times for one, times in counts.items() if one.isdecimal()}
    enough = max(_COMMON * len(words), _ENOUGH * len(sizes))
    return set(sizes) if sum(sizes.values()) >= enough else set()


def style_of(files: Sequence[SvgFile]) -> str:
    """Style words of a set, from a sample of its drawings: outline, filled or duotone, and rounded where lines end
    round.

    >>> style_of([])
    ''
    """
    kinds: Counter[str] = Counter()
    rounded = strokes = 0
    for file in files[:: max(1, len(files) // _SAMPLED)]:
        lines = [one for one in _shapes(file) if one.get("stroke", "none") != "none"]
        kinds[kind_of(file)] += 1
        strokes += len(lines)
        rounded += sum(one.get("stroke-linecap") == "round" for one in lines)
    if not kinds:
        return ""
    [(kind, _)] = kinds.most_common(1)
    return f"{kind} rounded" if rounded > strokes / 2 else kind


def kind_of(file: SvgFile) -> str:
    """What a drawing consists of: one of `KINDS`."""
    if any(one.get(key, "1") != "1" for one in _shapes(file) for key in _OPACITIES):
        return "duotone"
    return "filled" if _has_areas(file.svg) else "outline"


def _shapes(file: SvgFile) -> list[ElementTree.Element]:
    return [one for one in parse_xml(file.svg).iter() if _local(one) in SHAPES]


def _has_areas(svg: str) -> bool:
    """Whether much of a drawing's ink is further from its edges than that of lines."""
    from PIL import Image, ImageFilter

    try:
        ink = Image.fromarray(255 - render_svg(svg, _SIDE).min(2))
    except ValueError:
        return False
    inside = ink.filter(ImageFilter.MinFilter(_LINE))
    return bool(np.asarray(inside).sum() > _AREAS * np.asarray(ink).sum())


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
