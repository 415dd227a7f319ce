"""Draws an SVG document as pixels, unless it does more than draw; makes a square document of a drawing."""

from __future__ import annotations

import io
import re
from functools import cache
from importlib.metadata import version
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError
from cm3run.xml_text import parse_xml

_SVG_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def renderer_version() -> str:
    """Return name and version of the renderer, as used in cache keys: ``resvg_py-0.5.0``."""
    return f"resvg_py-{version('resvg_py')}"


def square_svg(body: str, *, left: float, top: float, width: float, height: float) -> str:
    """Wrap an SVG body in a document whose view box is the smallest square around the drawing,
    centred.

    Args:
        body: SVG elements without the surrounding ``<svg>`` tag.
        left, top, width, height: the drawing's own view box, in its user units.

    Returns:
        A whole SVG document.
    """
    side = max(width, height)
    x = left - (side - width) / 2
    y = top - (side - height) / 2
    return f'{_SVG_HEAD} viewBox="{x:g} {y:g} {side:g} {side:g}">{body}</svg>'


MAX_BYTES = 2**19
"""Size limit of a drawing; the largest one in the bundled corpus has a third of it."""
MAX_DRAWN = 20_000
"""Limit of drawn elements, counting each reference."""
MAX_DEPTH = 100

_FORBIDDEN = re.compile(
    r"<\s*(?:\w+:)?(image|feImage|script|foreignObject)\b|<!(?!--)|<\?", re.IGNORECASE
)
_FORBIDDEN_NAMES = frozenset(("image", "feimage", "script", "foreignobject"))
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^'\")\s]+)")


#: What a drawing needs to do more than draw itself.
_MAY_DO_MORE = re.compile(r"<!|<\?|[iI]mage|script|foreignObject|href|url\(|&")


def fault(svg: str) -> str | None:
    """Return why a drawing is rejected; None if it is accepted.

    Args:
        svg: a whole document from `square_svg`.
    """
    if len(svg) > MAX_BYTES:
        return f"has {len(svg):,} letters"
    inner = svg.partition(">")[2]
    if found := _FORBIDDEN.search(inner):
        return f"holds {found.group().strip()}"
    try:
        root = parse_xml(svg)
    except DataError as error:
        return error.cause.partition(" (")[0]  # the same for all that have this fault
    for element in root.iter():
        name = str(element.tag).rpartition("}")[2]
        if name.lower() in _FORBIDDEN_NAMES:
            return f"holds <{name}"
    try:
        return None if _num_drawn(root) <= MAX_DRAWN else "has too many nested references"
    except RecursionError:
        return "is nested too deeply"


def _num_drawn(root: ElementTree.Element) -> int:
    """Return the number of elements, counting each reference."""
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
            raise RecursionError  # the elements in the cycle are not known
        for key, value in element.attrib.items():
            if key.rpartition("}")[2] == "href":
                number += of_id(value.removeprefix("#"))
            for name in _REFERENCE.findall(value):
                number += of_id(name)
        return number + sum(number_of(child, depth + 1) for child in element)

    return number_of(root, 0)


def render_svg(svg: str, size: int, background: str | None = "white") -> NDArray[np.uint8]:
    """Draw a square SVG document.

    Args:
        svg: a document from ``square_svg``.
        size: side of the picture, in pixels, at least 1.
        background: its colour behind the drawing; None: none, and the picture has alpha.

    Returns:
        uint8 array of shape [size, size, 3], RGB; [size, size, 4] with alpha, not multiplied.

    Raises:
        ValueError: the renderer can't read the document; a `DataError` if it may not, see `fault`.
    """
    # The renderer reads the files that a document names, expands entities and references without end, and crashes on
    # deep ones. Most drawings can't: they have nothing that names another part, and few groups to close.
    if _MAY_DO_MORE.search(svg) or svg.count("</") > MAX_DEPTH:
        cause = fault(svg)
        if cause is not None:
            raise DataError("SVG", cause, "use another drawing")
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=svg, background=background, width=size, height=size, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as picture:
        mode = "RGB" if background else "RGBA"
        return np.asarray(picture.convert(mode), dtype=np.uint8)
