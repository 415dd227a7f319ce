"""Icons as pictures: detect colour, find the levels and areas of ink, and use them.

The finisher `icon` removes colour unless it is asked for, and writes ink drawings as SVG; the upscaler `ink` enlarges
them. An ink drawing is black, or black and one grey, on white. The results are free of the noise that a decoder leaves in
white and grey areas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cm3core.document import BoolArray, PixelArray
from cm3core.images import png_bytes
from cm3core.interfaces.upscaler import Upscaler
from cm3run.prompting import Finisher
from cm3run.words import words_of

#: A pixel has colour if its channels differ by more than this; a picture has colour if more than this share of its
#: pixels has: JPEG files of grey drawings contain tints.
PIXEL_FROM, PICTURE_FROM = 20, 0.005
#: The same share for a picture known only by its codes, which add specks to grey drawings. 4% of 4,597 grey icons
#: exceed it, and all of 403 coloured ones; 13% of the grey ones exceed `PICTURE_FROM`.
DECODED_FROM = 0.03
#: Darkness (0: white, 1: black) up to which a pixel is paper, and above which ink is black.
_PAPER, FULL = 0.1, 0.85
#: Levels that differ by less than this form one flat area; grey areas are lighter than this share of the ink's level.
_FLAT, _GREYS = 0.2, 0.75
#: Smallest share of pixels in grey areas, and in paper; and the largest mean error when paper, grey and ink replace all
#: levels: 0.1% of 1,400 grey icons exceed it. Photographs have no paper.
_GREY_SHARE, _PAPER_SHARE, _ERROR = 0.01, 0.05, 0.055
#: Pictures are enlarged to about this size before tracing, at least twofold; if larger, curves follow every pixel.
_TRACED_SIDE = 256

_PATH = re.compile(r'<path d="([^"]*)"[^>]*?\s(transform="[^"]*")')

#: A darkness above any pixel's.
_NEVER = 2.0
_Floats = NDArray[np.float64]
_Values = TypeVar("_Values", _Floats, BoolArray)


def has_colour(pixels: PixelArray, share: float = PICTURE_FROM) -> bool:
    """Whether more than a share of a picture uint8 [height, width, 3] is not black, white or grey.

    >>> has_colour(np.full((8, 8, 3), 90, np.uint8)), has_colour(np.full((8, 8, 3), (90, 0, 0), np.uint8))
    (False, True)
    """
    differs = pixels.max(axis=2) - pixels.min(axis=2) > PIXEL_FROM
    return bool(differs.mean() > share)


def without_colour(pixels: PixelArray) -> PixelArray:
    """Return a picture uint8 [height, width, 3] with its luminance (ITU-R BT.601) in all three channels."""
    return np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")).copy()


@dataclass(frozen=True)
class Ink:
    """A drawing's levels of darkness, 0..1: of its ink, and of its grey areas (0 if it has none)."""

    full: float
    grey: float

    @property
    def threshold(self) -> float:
        """Darkness above which a pixel next to grey is full ink; next to paper it is `full / 2`."""
        return (self.full + self.grey) / 2


def ink_of(pixels: PixelArray, enlarged: int = 1) -> Ink | None:
    """Return the levels of a picture; None if it has colour, or is not an ink drawing on paper.

    Args:
        pixels: uint8 [height, width, 3].
        enlarged: how many times it was enlarged since it was drawn; its edges are that many pixels wide.
    """
    if has_colour(pixels):
        return None
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


@dataclass(frozen=True, eq=False)
class InkAreas:
    """An enlarged drawing: the darkness of each pixel, and the thresholds of ink.

    Args:
        dark: darkness, [height, width], 0..1.
        grey_from, full_from: thresholds of grey and of full ink, of the same shape; full ink also counts as grey. Above
            1 there is none.
    """

    dark: NDArray[np.float64]
    grey_from: NDArray[np.float64]
    full_from: NDArray[np.float64]


def ink_areas(large: PixelArray, ink: Ink, times: int, enlarged: int = 1) -> InkAreas:
    """Find the areas of ink in an enlarged picture.

    Args:
        large: uint8 [height, width, 3]; smooth, as from bicubic interpolation.
        ink: levels of the small picture.
        times: enlargement, 2 or more.
        enlarged: enlargement of the small picture, see `ink_of`.
    """
    picture = Image.fromarray(large).convert("L")
    # steps of single pixels would become jagged edges
    dark = _darkness(picture.filter(ImageFilter.GaussianBlur(times / 3)))
    around_grey = _around_grey(dark, ink, times * enlarged)
    return InkAreas(
        dark,
        np.where(around_grey, ink.grey / 2, _NEVER),
        np.where(around_grey, ink.threshold, ink.full / 2),
    )


def _around_grey(dark: _Floats, ink: Ink, pixel: int) -> BoolArray:
    """Return the grey areas, grown by a pixel of the drawing so that no gap shows next to full ink.

    The edges of full ink are as dark as grey, but narrow: areas no wider than a pixel of the drawing are dropped.

    Args:
        dark: darkness of the picture to trace.
        ink: levels of the picture.
        pixel: side of a pixel of the original drawing.
    """
    if not ink.grey:
        return np.zeros(dark.shape, np.bool_)
    paler = (dark <= ink.grey / 2) | (dark >= ink.threshold)
    narrow = max(3, 2 * pixel - 1)
    inner = ~_most_around(paler, narrow)
    return _most_around(_most_around(inner, narrow), 2 * pixel + 1)


def _means(values: _Floats, side: int) -> _Floats:
    """Average whole squares with that side: edges of enlarged pictures are wide and partly ink.

    >>> _means(np.array([[1.0, 2, 9], [3, 4, 9]]), 2).tolist()
    [[2.5]]
    """
    height, width = (length // side * side for length in values.shape)
    squares = values[:height, :width].reshape(height // side, side, width // side, side)
    means: _Floats = squares.mean(axis=(1, 3))
    return means


def _most_around(values: _Values, width: int) -> _Values:
    """Return the maximum in the square of that odd width around each pixel; edge values are repeated outward.

    >>> _most_around(np.array([[0, 1, 0, 0], [0, 0, 0, 0]]), 3).tolist()
    [[1, 1, 1, 0], [1, 1, 1, 0]]
    """
    for axis in (0, 1):  # one axis at a time: Pillow's filters read every pixel of wide squares
        beyond = [(0, 0), (0, 0)]
        beyond[axis] = (width // 2, width // 2)
        padded = np.pad(values, beyond, mode="edge")
        values = np.lib.stride_tricks.sliding_window_view(padded, width, axis).max(-1)
    return values


def _darkness(picture: Image.Image) -> _Floats:
    """Return the darkness, 0 (white) to 1 (black), [height, width]."""
    darkness: _Floats = 1 - np.asarray(picture, np.float64) / 255
    return darkness


def ink_svg(pixels: PixelArray, ink: Ink, enlarged: int = 1) -> str:
    """Return the areas of grey and of full ink as an SVG.

    Args:
        pixels: uint8 [height, width, 3].
        ink: levels of the picture.
        enlarged: see `ink_of`.
    """
    height, width = pixels.shape[:2]
    times = max(2, round(_TRACED_SIDE / max(height, width)))
    large = Image.fromarray(pixels).convert("L")
    large = large.resize((width * times, height * times), Image.Resampling.BICUBIC)
    areas = ink_areas(np.asarray(large.convert("RGB")), ink, times, enlarged)
    pixel = times * enlarged
    groups = [
        _group(areas.dark > areas.grey_from, pixel, ink.grey),
        _group(areas.dark > areas.full_from, pixel, 1.0 if ink.full >= FULL else ink.full),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width * times} {height * times}">\n{"".join(groups)}</svg>\n'
    )


def _group(covered: BoolArray, pixel: int, opacity: float) -> str:
    """Trace the covered pixels as curves; drops specks smaller than about two pixels of the drawing."""
    faint = f' opacity="{opacity:.2f}"' if opacity < 1 else ""
    paths = "".join(f'<path d="{curve}" {place}/>\n' for curve, place in _traced(covered, pixel))
    return f'<g fill="currentColor"{faint}>\n{paths}</g>\n' if paths else ""


def _traced(covered: BoolArray, pixel: int) -> Iterator[tuple[str, str]]:
    import vtracer  # of an extra

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


class InkUpscaler(Upscaler):
    """Sharpens ink drawings after `otherwise` has enlarged them."""

    def __init__(self, otherwise: Upscaler) -> None:
        self.otherwise = otherwise

    @property
    def scale(self) -> int:
        return self.otherwise.scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return np.stack([self._one(pixels_HWC) for pixels_HWC in pixels_NHWC])

    def _one(self, pixels_HWC: PixelArray) -> PixelArray:
        large = self.otherwise.upscale(pixels_HWC)
        if self.scale == 1 or (ink := ink_of(pixels_HWC)) is None:
            return large
        return _drawn(ink, ink_areas(large, ink, self.scale))


def _drawn(ink: Ink, areas: InkAreas) -> PixelArray:
    """Draw the areas in their greys, uint8 [height, width, 3]; edges are one pixel wide."""
    full = 1.0 if ink.full >= FULL else ink.full
    covered = _covered(areas.dark, areas.full_from)
    dark = ink.grey * _covered(areas.dark, areas.grey_from) * (1 - covered) + full * covered
    return np.repeat(np.rint(255 * (1 - dark)).astype(np.uint8)[:, :, None], 3, axis=2)


def _covered(dark: _Floats, above: _Floats) -> _Floats:
    """Return each pixel's coverage, 0..1, by areas above a threshold, from its distance to the edge and the slope there."""
    slope = np.hypot(*np.gradient(dark))
    covered: _Floats = np.clip((dark - above) / np.maximum(slope, 1e-3) + 0.5, 0, 1)
    return covered


class IconFinisher(Finisher):
    """See `IconFinisherConfig`."""

    def __init__(self, colour_words: Sequence[str] | None) -> None:
        self.colour_words = None if colour_words is None else list(map(words_of, colour_words))

    def _finish(
        self, pixels: PixelArray, texts: Sequence[str], pictures: Sequence[PixelArray]
    ) -> PixelArray:
        phrases = self.colour_words
        if phrases is None and not pictures:
            return self._finish_decoded(pixels)
        if phrases is not None:
            said = [set(words_of(text)) for text in texts]
            if not phrases or any(one and own.issuperset(one) for own in said for one in phrases):
                return pixels
        return pixels if any(map(has_colour, pictures)) else without_colour(pixels)

    def _finish_decoded(self, pixels: PixelArray) -> PixelArray:
        if self.colour_words == [] or has_colour(pixels, DECODED_FROM):
            return pixels
        return without_colour(pixels)

    def svg(self, pixels: PixelArray, enlarged: int = 1) -> str | None:
        """Return the areas of ink as SVG; None if the picture has colour or is not an ink drawing."""
        ink = ink_of(pixels, enlarged)
        return None if ink is None else ink_svg(pixels, ink, enlarged)
