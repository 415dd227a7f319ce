"""What a drawing of a package from anyone may hold: shapes, and references within itself that stay small.

The renderer reads pictures that a drawing names from the disk, and draws what references multiply: both are
refused here, before it sees them.
"""

from __future__ import annotations

import re
from functools import cache
from xml.etree import ElementTree

MAX_BYTES = 2**19
"""The largest drawing of the bundled corpus has a third of it."""
MAX_DRAWN = 20_000
"""Elements that are drawn, each as often as references lead to it."""
MAX_DEPTH = 100

_FORBIDDEN = re.compile(
    r"<\s*(?:\w+:)?(image|feImage|script|foreignObject)\b|<!(?!--)|<\?", re.IGNORECASE
)
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")\s]+)")


def fault(svg: str) -> str | None:
    """Say why a drawing is not to be drawn; None: it may be.

    Args:
        svg: a whole document, as `square_svg` returns it.
    """
    if len(svg) > MAX_BYTES:
        return f"has {len(svg):,} letters"
    inner = svg[svg.index(">") + 1 :]
    if found := _FORBIDDEN.search(inner):
        return f"holds {found.group().strip()}"
    try:
        root = ElementTree.fromstring(svg)
    except (ElementTree.ParseError, ValueError):
        return "is no well-formed SVG"
    try:
        return None if _num_drawn(root) <= MAX_DRAWN else "is drawn too often by references"
    except RecursionError:
        return "is nested too deeply"


def _num_drawn(root: ElementTree.Element) -> int:
    """Number of elements, those that are referred to as often as they are."""
    by_id = {element.get("id"): element for element in root.iter()}
    open_ids: set[str] = set()

    @cache
    def of_id(name: str) -> int:
        if name in open_ids or len(open_ids) > MAX_DEPTH:
            raise RecursionError
        if name not in by_id:
            return 0
        open_ids.add(name)
        number = number_of(by_id[name], 0)
        open_ids.remove(name)
        return number

    def number_of(element: ElementTree.Element, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise RecursionError
        number = 1
        if element.tag.endswith("style") and "url(" in (element.text or ""):
            raise RecursionError  # which elements it concerns is not known
        for key, value in element.attrib.items():
            if key.rpartition("}")[2] == "href":
                number += of_id(value.removeprefix("#"))
            for name in _REFERENCE.findall(value):
                number += of_id(name)
        return number + sum(number_of(child, depth + 1) for child in element)

    return number_of(root, 0)
