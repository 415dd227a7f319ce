"""Draws an SVG document as pixels; makes a square document of a drawing."""

from __future__ import annotations

import io
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

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


def render_svg(svg: str, size: int) -> NDArray[np.uint8]:
    """Draw a square SVG document on white.

    Args:
        svg: a document from ``square_svg``.
        size: side of the picture, in pixels, at least 1.

    Returns:
        uint8 array of shape [size, size, 3], RGB.

    Raises:
        ValueError: the renderer can't read the document.
    """
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(
        svg_string=svg, background="white", width=size, height=size, skip_system_fonts=True
    )
    with Image.open(io.BytesIO(bytes(png))) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)
