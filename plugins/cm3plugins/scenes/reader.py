"""Reads a scene back from its pixels, by correlation with every drawing at every place and size.

There is nothing to train: on a picture of `draw` the result is the scene. Whatever isn't close to a drawing is left unread,
and the reading says so. Drawings are compared by their units' mean colours first, and exactly only where these leave a
choice; the result is the same. Legend: H, W pixels; s pixels a side of an object; K drawings; P places; e numbers of a
summary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3plugins.scenes.composing import Corner, Raster
from cm3plugins.scenes.keys import BACKGROUNDS, SizeName
from cm3plugins.scenes.sprites import Sprites

FloatArray = npt.NDArray[np.float32]

#: Largest squared distance from the drawing, as a share of the drawing's own squared distance from the background.
MOST_OFF = 0.45
#: How much more of the drawing's fine detail the picture has than the drawing blurred by a pixel: a blurred picture is not a
#: drawing. Of 1,500 objects 99.8% have as much after the bundled tokenizer, and 2% after a blur.
LEAST_DETAIL = 1.75
#: Mean squared distance, summed over the channels, that a faint drawing, or a unit without an object, may have. In 8-bit steps.
MOST_NOISE = 160.0
#: A pixel with at most this difference in each channel has the background's colour; a picture has at least this share.
_LIKE_BACKGROUND, _LEAST_BACKGROUND = 10, 0.03
#: A scene has at most this many objects.
_MOST_OBJECTS = 12
#: Drawings that are compared exactly at first, those with the largest bounds.
_FIRST = 8


@dataclass(frozen=True)
class Found:
    """An object that was read.

    Args:
        concept, style, size: of the drawing.
        corner: (left, top) in units.
        off: squared distance from the drawing, as a share of the drawing's own from the background.
    """

    concept: str
    style: str
    size: SizeName
    corner: Corner
    off: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows.

    Args:
        found: its objects, from the top and the left.
        background: its name; "": none of the known ones.
        is_whole: whether nothing but these objects is there; if False, something can't be read.
    """

    found: tuple[Found, ...]
    background: str
    is_whole: bool


class SceneReader:
    """Reads pictures of one raster and collection of drawings.

    Args:
        sprites: the drawings that may occur.
        raster: where they may be.
    """

    def __init__(self, sprites: Sprites, raster: Raster) -> None:
        self.sprites, self.raster = sprites, raster
        self._layers = lru_cache(8)(self._layers_of)
        self._drawings = lru_cache(32)(self._drawings_on)

    def read(self, pixels_HWC: PixelArray) -> Reading:
        """Read a picture, uint8 [H, W, 3].

        Raises:
            DataError: it isn't square, or not of whole units.
        """
        side = self.raster.side
        height, width = pixels_HWC.shape[:2]
        if height != width or height % side:
            raise DataError(
                "picture",
                f"has {height} x {width} pixels; a scene has a multiple of {side} a side",
                "evaluate at the size of the data set's pictures",
            )
        unit = height // side
        background = background_of(pixels_HWC)
        if not background:
            return Reading((), "", False)
        off_HWC = pixels_HWC.astype(np.float32) - np.array(BACKGROUNDS[background], np.float32)
        energy = (off_HWC**2).sum(-1).reshape(side, unit, side, unit).mean((1, 3))
        gains = {
            size: _Gains(off_HWC, self._drawings(units, unit, background))
            for size, units in self.raster.sizes.items()
        }
        taken = np.zeros((side, side), bool)
        found: list[Found] = []
        is_whole = True
        while len(found) < _MOST_OBJECTS:
            best = max(gains, key=lambda size: gains[size].gain_P.max())
            own = gains[best]
            place = int(own.gain_P.argmax())
            if own.gain_P[place] <= 0:
                break
            if not own.is_exact_P[place]:
                own.compare(place)
                continue
            units = self.raster.sizes[best]
            s = units * unit
            left, top = place % own.columns, place // own.columns
            inside = slice(top, top + units), slice(left, left + units)
            crop = off_HWC[top * unit : top * unit + s, left * unit : left * unit + s]
            drawing = int(own.drawing_P[place])
            drawn = own.drawings.differences(slice(drawing, drawing + 1))[0]
            wanted, off = float(own.drawings.squares_K[drawing]), own.off(place)
            if off > max(MOST_OFF * wanted, MOST_NOISE * s**2) or detail(
                crop, drawn
            ) < LEAST_DETAIL * detail(blurred(drawn), drawn):
                # nothing that is drawn is near it; an empty place has no gain worth a look
                is_whole = is_whole and not (energy[inside] > MOST_NOISE).any()
                own.gain_P[place] = -1
                continue
            sprite = self.sprites.all[self.sprites.usable[drawing]]
            found.append(
                Found(sprite.concept, sprite.style, best, (left, top), off / max(wanted, 1.0))
            )
            taken[inside] = True
            for one in gains.values():
                one.leave_out(taken)
        is_whole = is_whole and not (energy[~taken] > MOST_NOISE).any()
        found.sort(key=lambda one: (one.corner[1], one.corner[0]))
        return Reading(tuple(found), background, is_whole)

    def _drawings_on(self, units: int, unit: int, background: str) -> _Drawings:
        """The usable drawings at a size, before a background."""
        layers = self._layers(units * unit)
        return _Drawings(*layers, units, np.array(BACKGROUNDS[background], np.float32))

    def _layers_of(self, s: int) -> tuple[FloatArray, FloatArray]:
        """Their alpha * colour, float32 [K, s, s, 3], and alpha, float32 [K, s, s, 1]."""
        pixels = self.sprites.pixels(s)[list(self.sprites.usable)].astype(np.float32)
        alpha = pixels[..., 3:] / np.float32(255)
        return pixels[..., :3] * alpha, alpha


@dataclass(frozen=True)
class _Drawings:
    """Drawings of a size, before a background.

    Args:
        drawn_Kss3: alpha * colour, float32.
        alpha_Kss1: alpha, float32.
        units: units a side.
        colour: of the background, float32 [3].
    """

    drawn_Kss3: FloatArray
    alpha_Kss1: FloatArray
    units: int
    colour: FloatArray

    def differences(self, drawings: slice) -> FloatArray:
        """Some drawings' differences from the background, alpha * (their colour - the background), float32 [N, s, s, 3]."""
        found: FloatArray = self.drawn_Kss3[drawings] - self.alpha_Kss1[drawings] * self.colour
        return found

    def gains(self, crop_ss3: FloatArray, drawings: npt.NDArray[np.intp]) -> FloatArray:
        """How much better some drawings explain a crop than the background alone, float32 [len(drawings)]."""
        num, alpha_ss = len(drawings), crop_ss3 @ self.colour
        dots = self.drawn_Kss3[drawings].reshape(num, -1) @ crop_ss3.ravel()
        dots -= self.alpha_Kss1[drawings].reshape(num, -1) @ alpha_ss.ravel()
        found: FloatArray = 2 * dots - self.squares_K[drawings]
        return found

    @cached_property
    def squares_K(self) -> FloatArray:
        """Squared distances from the background, float32 [K]."""
        return np.concatenate([_squares(part) for part in self._parts()])

    @cached_property
    def summaries_Ke(self) -> FloatArray:
        """See `summaries`, float32 [K, e]."""
        return np.concatenate([summaries(part, self.units) for part in self._parts()])

    def _parts(self) -> Iterator[FloatArray]:
        """All differences; at once they would take as much memory as the drawings."""
        for start in range(0, len(self.drawn_Kss3), 512):
            yield self.differences(slice(start, start + 512))


def _squares(pictures_Nss3: FloatArray) -> FloatArray:
    """Sums of squares, float32 [N]."""
    found: FloatArray = np.einsum("nijc,nijc->n", pictures_Nss3, pictures_Nss3)
    return found


def summaries(pictures_Nss3: FloatArray, units: int) -> FloatArray:
    """Short vectors whose dot products are no less than those of the pictures: each unit's mean colour, times the unit's
    side, and the norm of what the means leave out; float32 [N, e].

    >>> one, other = np.zeros((1, 2, 2, 3), np.float32), np.ones((1, 2, 2, 3), np.float32)
    >>> one[0, 0, 0] = 8
    >>> summaries(one, 1).tolist()  # a mean of 2, and a rest of -2, -2, -2, 6
    [[4.0, 4.0, 4.0, 12.0]]
    >>> float((summaries(one, 1) @ summaries(other, 1).T)[0, 0]), float((one * other).sum())
    (24.0, 24.0)
    """
    num, side = pictures_Nss3.shape[:2]
    unit = side // units
    rows = pictures_Nss3.reshape(num, units, unit, -1).sum(2)
    scaled = rows.reshape(num, units, units, unit, 3).sum(3).reshape(num, -1) / unit
    rest = _squares(pictures_Nss3) - _squares(scaled.reshape(num, units, units, 3))
    return np.concatenate([scaled, np.sqrt(np.maximum(rest, 0))[:, None]], 1)


class _Gains:
    """How much better the best drawing at each place explains a picture than the background alone, and the places that are
    left. A gain is first a bound, from the summaries, until `compare` makes it exact.

    Args:
        off_HWC: the picture's difference from its background.
        drawings: what may be there.
    """

    def __init__(self, off_HWC: FloatArray, drawings: _Drawings) -> None:
        self.drawings = drawings
        s, units = drawings.drawn_Kss3.shape[1], drawings.units
        windows = np.lib.stride_tricks.sliding_window_view(off_HWC, (s, s), (0, 1))
        windows = windows[:: s // units, :: s // units]
        self.columns = windows.shape[1]
        self._crops_Pss3 = np.moveaxis(windows, 2, -1).reshape(-1, s, s, 3)
        self._squares_P = _squares(self._crops_Pss3)
        # a little above the exact gain of a drawing that is there, in spite of rounding
        self._most_PK = 2 * summaries(self._crops_Pss3, units) @ drawings.summaries_Ke.T
        self._most_PK -= (1 - 1e-4) * drawings.squares_K
        self.gain_P = self._most_PK.max(1)
        self.drawing_P = np.zeros(len(self.gain_P), np.intp)
        self.is_exact_P = np.zeros(len(self.gain_P), bool)

    def leave_out(self, taken: npt.NDArray[np.bool_]) -> None:
        """Leave out the places that share a unit with one that is taken."""
        units = self.drawings.units
        windows = np.lib.stride_tricks.sliding_window_view(taken, (units, units))
        self.gain_P[windows.any((2, 3)).ravel()] = -1

    def compare(self, place: int) -> None:
        """Make a place's gain exact, and find its drawing."""
        crop, most_K = self._crops_Pss3[place], self._most_PK[place]
        first = np.argpartition(-most_K, min(_FIRST, len(most_K)) - 1)[:_FIRST]
        # no drawing whose bound is below another's gain can be the best
        least = min(self.drawings.gains(crop, first).max(), most_K.max())
        near = np.flatnonzero(most_K >= least)
        gains = self.drawings.gains(crop, near)
        self.drawing_P[place] = near[gains.argmax()]
        self.gain_P[place], self.is_exact_P[place] = gains.max(), True

    def off(self, place: int) -> float:
        """Squared distance of the picture at a place from its drawing."""
        return max(float(self._squares_P[place] - self.gain_P[place]), 0.0)


def detail(crop_HWC: FloatArray, drawn_HWC: FloatArray) -> float:
    """How much of a drawing's fine detail a crop has: the projection of its Laplacian on the drawing's, 1 for the drawing itself.

    >>> drawn = np.zeros((4, 4, 3), np.float32)
    >>> drawn[1:3, 1] = 8
    >>> detail(drawn, drawn), detail(drawn / 2, drawn)
    (1.0, 0.5)
    """
    own, wanted = _laplacian(crop_HWC), _laplacian(drawn_HWC)
    return float((own * wanted).sum() / max(float((wanted**2).sum()), 1e-6))


def blurred(picture_HWC: FloatArray) -> FloatArray:
    """A picture blurred with a standard deviation of one pixel, by the binomial filter 1 4 6 4 1."""
    for axis in (0, 1):
        rows = np.moveaxis(picture_HWC, axis, 0)
        for _ in range(2):
            padded = np.pad(rows, ((1, 1), (0, 0), (0, 0)), mode="edge")
            rows = ((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4).astype(np.float32)
        picture_HWC = np.moveaxis(rows, 0, axis)
    return picture_HWC


def _laplacian(picture_HWC: FloatArray) -> FloatArray:
    inner: FloatArray = 4 * picture_HWC[1:-1, 1:-1]
    inner = inner - picture_HWC[:-2, 1:-1] - picture_HWC[2:, 1:-1]
    return inner - picture_HWC[1:-1, :-2] - picture_HWC[1:-1, 2:]


def background_of(pixels_HWC: PixelArray) -> str:
    """The background that most pixels have; "" if too few have any."""
    flat = pixels_HWC.reshape(-1, 3).astype(np.int16)
    shares: Mapping[str, float] = {
        name: float((abs(flat - np.array(colour)) <= _LIKE_BACKGROUND).all(1).mean())
        for name, colour in BACKGROUNDS.items()
    }
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= _LEAST_BACKGROUND else ""


def corners_of(reading: Reading) -> Sequence[tuple[str, str, SizeName, Corner]]:
    """The objects of a reading without their distances."""
    return [(one.concept, one.style, one.size, one.corner) for one in reading.found]
