"""Reads a scene back from its pixels, by correlation with every drawing at every place and size.

There is nothing to train: on a picture of `draw` the result is the scene. Whatever isn't close to a drawing is left unread,
and the reading says so. Legend: H, W pixels; u pixels a unit; s pixels a side of an object; K drawings; P places; d = s * s * 3
numbers of a crop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
#: Smallest share of the drawing's fine detail (its Laplacian) that the picture has: a blurred picture is not a drawing.
LEAST_DETAIL = 0.2
#: Mean squared distance, summed over the channels, that a faint drawing, or a unit without an object, may have. In 8-bit steps.
MOST_NOISE = 160.0
#: A pixel with at most this difference in each channel has the background's colour; a picture has at least this share.
_LIKE_BACKGROUND, _LEAST_BACKGROUND = 10, 0.03
#: A scene has at most this many objects.
_MOST_OBJECTS = 12


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
        self._drawings = lru_cache(8)(self._load)

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
        colour = np.array(BACKGROUNDS[background], np.float32)
        off_HWC = pixels_HWC.astype(np.float32) - colour
        energy = (off_HWC**2).sum(-1).reshape(side, unit, side, unit).mean((1, 3))
        gains = {size: self._gains(off_HWC, size, unit, colour) for size in self.raster.sizes}
        taken, found = np.zeros((side, side), bool), []
        is_whole = True
        while len(found) < _MOST_OBJECTS:
            best = max(gains, key=lambda size: gains[size].best(taken)[0])
            gain, place, drawing = gains[best].best(taken)
            units = self.raster.sizes[best]
            s = units * unit
            if gain <= 0:
                break
            own, off = gains[best].own_K[drawing], gains[best].off(place, drawing)
            left, top = place % gains[best].columns, place // gains[best].columns
            inside = slice(top, top + units), slice(left, left + units)
            crop = off_HWC[top * unit : top * unit + s, left * unit : left * unit + s]
            drawn = self._drawn(drawing, s, colour)
            if off > max(MOST_OFF * own, MOST_NOISE * s**2) or detail(crop, drawn) < LEAST_DETAIL:
                # nothing that is drawn is near it; an empty place has no gain worth a look
                is_whole = is_whole and not (energy[inside] > MOST_NOISE).any()
                gains[best].drop(place)
                continue
            sprite = self.sprites.all[self.sprites.usable[drawing]]
            found.append(
                Found(sprite.concept, sprite.style, best, (left, top), float(off / max(own, 1.0)))
            )
            taken[inside] = True
        is_whole = is_whole and not (energy[~taken] > MOST_NOISE).any()
        found.sort(key=lambda one: (one.corner[1], one.corner[0]))
        return Reading(tuple(found), background, is_whole)

    def _gains(self, off_HWC: FloatArray, size: SizeName, unit: int, colour: FloatArray) -> _Gains:
        """How much better each drawing at each place explains the picture than the background alone."""
        units = self.raster.sizes[size]
        s = units * unit
        drawn_Kd, alpha_Ks = self._drawings(s)
        windows = np.lib.stride_tricks.sliding_window_view(off_HWC, (s, s), (0, 1))[::unit, ::unit]
        rows, columns = windows.shape[:2]
        crops_Pd = np.moveaxis(windows, 2, -1).reshape(rows * columns, s * s * 3)
        weighted_Ps = (crops_Pd.reshape(-1, s * s, 3) * colour).sum(-1)
        # a drawing's difference from the background is alpha * (its colour - the background)
        dots_PK = crops_Pd @ drawn_Kd.T - weighted_Ps @ alpha_Ks.T
        squares = drawn_Kd.reshape(-1, s * s, 3)
        own_K = (
            (drawn_Kd**2).sum(1)
            - 2 * np.einsum("ksc,ks,c->k", squares, alpha_Ks, colour, optimize=True)
            + (alpha_Ks**2).sum(1) * float((colour**2).sum())
        )
        crops_P = (crops_Pd**2).sum(1)
        return _Gains(2 * dots_PK - own_K, own_K, crops_P, columns, units)

    def _drawn(self, drawing: int, s: int, colour: FloatArray) -> FloatArray:
        """A drawing's difference from the background, float32 [s, s, 3]."""
        drawn_Kd, alpha_Ks = self._drawings(s)
        return drawn_Kd[drawing].reshape(s, s, 3) - alpha_Ks[drawing].reshape(s, s, 1) * colour

    def _load(self, s: int) -> tuple[FloatArray, FloatArray]:
        """The usable drawings at a size: alpha * colour, float32 [K, d], and alpha, float32 [K, s * s]."""
        pixels = self.sprites.pixels(s)[list(self.sprites.usable)].astype(np.float32)
        alpha = pixels[..., 3] / 255
        drawn = pixels[..., :3] * alpha[..., None]
        return drawn.reshape(len(pixels), -1), alpha.reshape(len(pixels), -1)


class _Gains:
    """Gains of drawings at places, and the places that are left."""

    def __init__(
        self, gains_PK: FloatArray, own_K: FloatArray, crops_P: FloatArray, columns: int, units: int
    ) -> None:
        self._best_P = gains_PK.argmax(1)
        self._gain_P = gains_PK[np.arange(len(gains_PK)), self._best_P].copy()
        self.own_K, self._crops_P, self.columns, self._units = own_K, crops_P, columns, units

    def best(self, taken: npt.NDArray[np.bool_]) -> tuple[float, int, int]:
        """(gain, place, drawing) of the best of the places that share no unit with one that is taken."""
        windows = np.lib.stride_tricks.sliding_window_view(taken, (self._units, self._units))
        free = ~windows.any((2, 3)).reshape(-1)
        gain_P = np.where(free, self._gain_P, -1.0)
        place = int(gain_P.argmax())
        return float(gain_P[place]), place, int(self._best_P[place])

    def off(self, place: int, drawing: int) -> float:
        """Squared distance of the picture at a place from its drawing."""
        return max(float(self._crops_P[place] - self._gain_P[place]), 0.0)

    def drop(self, place: int) -> None:
        """Leave a place out from now on."""
        self._gain_P[place] = -1.0


def detail(crop_HWC: FloatArray, drawn_HWC: FloatArray) -> float:
    """How much of a drawing's fine detail a crop has: the projection of its Laplacian on the drawing's, 1 for the drawing itself.

    >>> drawn = np.zeros((4, 4, 3), np.float32)
    >>> drawn[1:3, 1] = 8
    >>> detail(drawn, drawn), detail(drawn / 2, drawn)
    (1.0, 0.5)
    """
    own, wanted = _laplacian(crop_HWC), _laplacian(drawn_HWC)
    return float((own * wanted).sum() / max(float((wanted**2).sum()), 1e-6))


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
