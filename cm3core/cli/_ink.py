"""Drawings in black, and in one grey besides, as the areas that their ink covers: what `--svg` writes of them.

An SVG of such areas is what icon sets hold: a few kilobytes, no white, and `currentColor`, so that a page decides the
colour. Noise that a decoder leaves in white and grey areas is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cm3core.document import BoolArray, PixelArray
from cm3core.images import png_bytes

#: Darkness (0: white, 1: black) up to which a pixel is paper, and from which ink is black.
_PAPER, _BLACK = 0.1, 0.85
#: Levels that differ by less than this are one flat area; the grey of areas is below this share of the ink's own.
_FLAT, _GREYS = 0.2, 0.75
#: Least share of a picture's pixels that grey areas take, and paper; and the largest mean error of paper, grey and
#: ink in place of all levels: of 1,400 grey icons 0.1% have more than that. Photographs have no paper.
_GREY_SHARE, _PAPER_SHARE, _ERROR = 0.01, 0.05, 0.055

#: Pictures are enlarged to about this before they are traced, at least twice: of more, curves follow every pixel.
_TRACED_SIDE = 256

_PATH = re.compile(r'<path d="([^"]*)"[^>]*?\s(transform="[^"]*")')
_Floats = NDArray[np.float64]
_Values = TypeVar("_Values", _Floats, BoolArray)


@dataclass(frozen=True)
class Ink:
    """The levels of a drawing's darkness, 0..1: of its ink, and of its grey areas, 0 where it has none."""

    full: float
    grey: float

    @property
    def threshold(self) -> float:
        """Darkness from which a pixel beside grey has full ink; beside paper it is `full / 2`."""
        return (self.full + self.grey) / 2


def ink_of(pixels: PixelArray, enlarged: int = 1) -> Ink | None:
    """The levels of a picture uint8 [height, width, 3] without colour; None: it is no drawing in ink on paper.

    Args:
        pixels: uint8 [height, width, 3].
        enlarged: so many times as large as it was drawn, so that its edges are as many pixels wide.
    """
    picture = Image.fromarray(pixels).convert("L")
    dark = _darkness(picture)
    drawn = dark[dark > _PAPER]
    if not len(drawn) or 1 - len(drawn) / dark.size < _PAPER_SHARE:
        return None
    full = float(np.percentile(drawn, 90))
    width = 2 * enlarged + 1
    differs = _most_around(dark, width) + _most_around(-dark, width)
    flat = (differs < _FLAT) & (dark > _PAPER) & (dark < _GREYS * full)
    ink = Ink(full, float(np.median(dark[flat])) if flat.mean() > _GREY_SHARE else 0.0)
    paler = np.where(dark > ink.grey / 2, ink.grey, 0.0)
    levels = np.where(dark > ink.threshold, full, paler)
    return ink if np.abs(_means(levels - dark, enlarged)).mean() <= _ERROR else None


def ink_svg(pixels: PixelArray, ink: Ink, enlarged: int = 1) -> str:
    """Return the areas of grey and of full ink as an SVG.

    Args:
        pixels: uint8 [height, width, 3].
        ink: its levels.
        enlarged: see `ink_of`.
    """
    height, width = pixels.shape[:2]
    times = max(2, round(_TRACED_SIDE / max(height, width)))
    large = Image.fromarray(pixels).convert("L")
    large = large.resize((width * times, height * times), Image.Resampling.BICUBIC)
    # steps of single pixels would become teeth
    dark = _darkness(large.filter(ImageFilter.GaussianBlur(times / 3)))
    pixel = times * enlarged
    around_grey = _grey_areas(dark, ink, pixel)
    full = dark > np.where(around_grey, ink.threshold, ink.full / 2)
    groups = [
        _group(around_grey & (dark > ink.grey / 2), pixel, ink.grey),
        _group(full, pixel, 1.0 if ink.full >= _BLACK else ink.full),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width * times} {height * times}">\n{"".join(groups)}</svg>\n'
    )


def _grey_areas(dark: _Floats, ink: Ink, pixel: int) -> BoolArray:
    """The areas of grey with a pixel of the drawing around them, so that nothing shines through beside full ink.

    The edges of full ink are as dark, but narrow: what is no wider than a pixel of the drawing is left out.

    Args:
        dark: darkness of the picture as it is traced.
        ink: its levels.
        pixel: side of what was a pixel when the picture was drawn.
    """
    if not ink.grey:
        return np.zeros(dark.shape, np.bool_)
    paler = (dark <= ink.grey / 2) | (dark >= ink.threshold)
    narrow = max(3, 2 * pixel - 1)
    inner = ~_most_around(paler, narrow)
    return _most_around(_most_around(inner, narrow), 2 * pixel + 1)


def _means(values: _Floats, side: int) -> _Floats:
    """The means of whole squares of that side: enlarged edges are wide, and half ink.

    >>> _means(np.array([[1.0, 2, 9], [3, 4, 9]]), 2).tolist()
    [[2.5]]
    """
    height, width = (length // side * side for length in values.shape)
    squares = values[:height, :width].reshape(height // side, side, width // side, side)
    means: _Floats = squares.mean(axis=(1, 3))
    return means


def _most_around(values: _Values, width: int) -> _Values:
    """The largest value of the square of that odd width around each; beyond the edge it is as at the edge.

    >>> _most_around(np.array([[0, 1, 0, 0], [0, 0, 0, 0]]), 3).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0]]
    """
    for axis in (
        0,
        1,
    ):  # one after the other: of wide squares, Pillow's filters look at every pixel
        beyond = [(0, 0), (0, 0)]
        beyond[axis] = (width // 2, width // 2)
        padded = np.pad(values, beyond, mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, width, axis).max(-1)
    return values


def _group(covered: BoolArray, pixel: int, opacity: float) -> str:
    """The covered pixels as curves; specks of less than about two pixels of the drawing are left out."""
    faint = f' opacity="{opacity:.2f}"' if opacity < 1 else ""
    paths = "".join(f'<path d="{curve}" {place}/>\n' for curve, place in _traced(covered, pixel))
    return f'<g fill="currentColor"{faint}>\n{paths}</g>\n' if paths else ""


def _traced(covered: BoolArray, pixel: int) -> Iterator[tuple[str, str]]:
    import vtracer

    black = np.where(covered, 0, 255).astype(np.uint8)
    text: str = vtracer.convert_raw_image_to_svg(
        png_bytes(np.dstack([black] * 3)),
        img_format="png",
        colormode="binary",
        mode="spline",
        filter_speckle=2 * pixel,
        corner_threshold=60,
        path_precision=1,
    )
    for found in _PATH.finditer(text):
        yield " ".join(found[1].split()), found[2]


def _darkness(picture: Image.Image) -> _Floats:
    """0 (white) to 1 (black), [height, width]."""
    darkness: _Floats = 1 - np.asarray(picture, np.float64) / 255
    return darkness
