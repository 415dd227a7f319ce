"""`product`: a grid of squares, each part of a square an exact code of its own, and the colours of the square one more.

Brightness and colour are apart: parts say how bright each pixel is, the colour code what tint that brightness has. A
grey picture has no tint anywhere, so nothing that is decoded from its codes is coloured.

Legend: N pictures, P squares, Q parts of d pixels, K codes of a part, k codes of a square, C colour codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError, RecipeError
from cm3core.picture_form import CodeRules, PictureForm
from cm3plugins.image_tokenizers.by_arrays import (
    NUM_SQUARES,
    Arrays,
    ArrayTokenizer,
    FloatArray,
    PatchArraysConfig,
    Rounds,
    Shapes,
    centres_of,
    nearest,
    to_pixels,
)

if TYPE_CHECKING:
    import torch

#: Red, green and blue in the brightness, of 256.
_WEIGHTS = 77, 150, 29
#: The colour code of a square without colour.
GREY = 0
#: Share of a part's codes that are its most frequent values, exactly.
_EXACT = 0.25
#: Times that a frequent part counts at most where the other codes are learnt.
_MOST_TIMES = 200
#: Training pictures at most, spread over those given.
_NUM_PICTURES = 16_000


@dataclass(kw_only=True)
class ProductTokenizerConfig(PatchArraysConfig):
    """A grid of squares with a code for each of their parts, and one for their colours.

    A square of `patch_size` pixels has parts * parts parts. The code of a part is its brightness, pixel by pixel: the
    most frequent parts of the training pictures exactly, the others by k-means (product quantisation: Jegou et al.
    2011). The last code of a square is its tint, which depends on the brightness of a pixel linearly, so that one code
    says "red on white"; code 0 is grey. Grey pictures are always decoded to grey ones, and blank squares to blank ones.
    Has the keys of `PatchArraysConfig`, and:

    Args:
        parts: parts of a square along each side.
        part_codes: codes of a part; each part of a square has so many of its own.
        colours: tints that are learnt, grey included. They are in the weights even if `colour` is off.
        colour: whether squares have a colour code. False: all pictures are grey, and have one code less per square.

    Limits: parts are encoded alone; a square has one tint for each brightness.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "patch_size": (1, 2**10),
        "parts": (1, 64),
        "part_codes": (2, 2**16),
        "colours": (1, 2**12),
        "seed": (0, 2**63 - 1),
    }
    label: ClassVar[str] = "product"

    resolution: int = 64
    patch_size: int = 8
    parts: int = 2
    part_codes: int = 1280
    colours: int = 128
    colour: bool = True

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        if self.patch_size % self.parts:
            raise RecipeError(
                "image_tokenizer.parts",
                f"is {self.parts}, and a square has {self.patch_size} pixels a side",
                f"use a divisor of {self.patch_size}, or another patch_size",
            )

    @property
    def codes_per_place(self) -> int:
        """Those of the parts, and the colour."""
        return self.parts**2 + self.colour

    @property
    def codebook_size(self) -> int:
        """The codes of all parts, then the colours."""
        return self.parts**2 * self.part_codes + self.colour * self.colours

    @property
    def form(self) -> PictureForm:
        """The parts of a square in raster order, then its colour."""
        sizes = [self.part_codes] * self.parts**2 + [self.colours] * self.colour
        return PictureForm.of_grid(*self.places, len(sizes), CodeRules.by_slot(sizes))

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {
            "patch_size": self.patch_size,
            "parts": self.parts,
            "part_codes": self.part_codes,
            "colours": self.colours,
        }

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        side = self.patch_size // self.parts
        return {
            "parts": ("uint8", (self.part_codes, side * side)),
            "tints": ("int16", (self.colours, 4)),
        }

    def of_arrays(self, arrays: Arrays) -> ProductTokenizer:
        """See the base."""
        return ProductTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """The parts of grey pictures (of all, if none is grey), then the tints of the coloured ones.

        Raises:
            DataError: there are fewer different parts than codes.
        """
        return learnt(self, images_NHWC, rounds)


def brightness(images_NHWC: PixelArray) -> npt.NDArray[np.uint8]:
    """Brightness uint8 [N, H, W]; that of a grey pixel is its value.

    >>> brightness(np.array([[[[9, 9, 9], [255, 0, 0]]]], np.uint8)).tolist()
    [[[9, 77]]]
    """
    red, green, blue = (
        images_NHWC[..., channel].astype(np.int32) * weight
        for channel, weight in enumerate(_WEIGHTS)
    )
    bright_NHW: npt.NDArray[np.uint8] = ((red + green + blue + 128) >> 8).astype(np.uint8)
    return bright_NHW


def squares_of_values(values_NHW: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Squares in raster order, [N * rows * columns, side * side]."""
    number, height, width = values_NHW.shape
    split = values_NHW.reshape(number, height // side, side, width // side, side)
    return split.transpose(0, 1, 3, 2, 4).reshape(-1, side * side)


def fits_of(images_NHWC: PixelArray, bright_NHW: npt.NDArray[np.uint8], side: int) -> FloatArray:
    """What the error of any tint follows from, [P, 7].

    A tint is (red in the dark, red in the light, blue in the dark, blue in the light): how much more red, or blue, than
    its brightness y a pixel is at y = 0 and at y = 255; between them it is on a line. With t = y / 255 the seven sums
    are of (1 - t) r, t r, (1 - t) b, t b, (1 - t)^2, t (1 - t) and t^2, each times 255 or 255^2: whole numbers.
    """
    light_Pd = squares_of_values(bright_NHW, side).astype(np.float64)
    dark_Pd = 255 - light_Pd
    own_NHW = brightness(images_NHWC).astype(np.float64)
    red_Pd, blue_Pd = (
        squares_of_values(images_NHWC[..., channel] - own_NHW, side) for channel in (0, 2)
    )
    pairs = (
        *((dark_Pd, red_Pd), (light_Pd, red_Pd), (dark_Pd, blue_Pd), (light_Pd, blue_Pd)),
        *((dark_Pd, dark_Pd), (dark_Pd, light_Pd), (light_Pd, light_Pd)),
    )
    return np.stack([(one * other).sum(1) for one, other in pairs], axis=1)


def tints_of(fits_P7: FloatArray, tints_C4: FloatArray) -> IntArray:
    """The tint with the smallest error in each square, the first on a tie; exact for whole numbers."""
    red_dark, red_light, blue_dark, blue_light = tints_C4.T.astype(np.float64)
    terms_7C = np.stack(
        [
            *(-2 * 255 * one for one in (red_dark, red_light, blue_dark, blue_light)),
            red_dark**2 + blue_dark**2,
            2 * (red_dark * red_light + blue_dark * blue_light),
            red_light**2 + blue_light**2,
        ]
    )
    tints_P: IntArray = np.argmin(fits_P7 @ terms_7C, axis=1).astype(np.int32)
    return tints_P


def distinct_rows(
    rows_Qd: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """The different rows in ascending order, the place of each row among them, and how often each one is there."""
    rows_Qd = np.ascontiguousarray(rows_Qd)
    texts_Q = rows_Qd.view(np.dtype((np.void, rows_Qd.shape[1]))).reshape(-1)
    found, places_Q, times = np.unique(texts_Q, return_inverse=True, return_counts=True)
    values = np.frombuffer(found.tobytes(), np.uint8).reshape(-1, rows_Qd.shape[1])
    return values, places_Q.reshape(-1), times


class ProductTokenizer(ArrayTokenizer):
    """Pixels <-> codes of the parts and the colours of squares.

    Args:
        config: its keys.
        arrays: parts uint8 [K, d], tints int16 [C, 4]; the first tint is grey.
    """

    def __init__(self, config: ProductTokenizerConfig, arrays: Arrays) -> None:
        super().__init__(config, arrays)
        self._side, self._parts, self._colour = config.patch_size, config.parts, config.colour
        self._places = config.places
        self._parts_Kd = np.asarray(arrays["parts"], np.float64)
        self._tints_C4 = np.asarray(arrays["tints"], np.float64)

    @property
    def fingerprint(self) -> str:
        """Also says whether squares have a colour code."""
        return super().fingerprint + ("" if self._colour else " grey")

    def encode_parts(self, pixels_NHWC: PixelArray) -> IntArray:
        """Codes of parts, 0 to K - 1, int32 [P, parts * parts]."""
        number, height, width, _ = pixels_NHWC.shape
        side, parts = self._side // self._parts, self._parts
        rows_Qd = squares_of_values(brightness(pixels_NHWC), side)
        # most parts are blank or frequent: each is searched for once
        values, places_Q, _ = distinct_rows(rows_Qd)
        codes_Q = nearest(values.astype(np.float64), self._parts_Kd)[places_Q]
        rows, columns = height // self._side, width // self._side
        split = codes_Q.reshape(number, rows, parts, columns, parts)
        return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4)).reshape(-1, parts**2)

    def decode_parts(self, codes_Pk: IntArray) -> npt.NDArray[np.uint8]:
        """Brightness uint8 [N, H, W] of codes of parts."""
        (rows, columns), parts = self._places, self._parts
        side = self._side // parts
        split = self._parts_Kd[codes_Pk].reshape(-1, rows, columns, parts, parts, side, side)
        pixels = split.transpose(0, 1, 3, 5, 2, 4, 6).astype(np.uint8)
        return np.ascontiguousarray(pixels).reshape(-1, rows * self._side, columns * self._side)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        codes_Pk = self.encode_parts(pixels_NHWC)
        num_parts, size = codes_Pk.shape[1], len(self._parts_Kd)
        ids_Pk = codes_Pk + size * np.arange(num_parts, dtype=np.int32)
        if self._colour:
            fits_P7 = fits_of(pixels_NHWC, self.decode_parts(codes_Pk), self._side)
            tints_P = tints_of(fits_P7, self._tints_C4)
            tints_P[(fits_P7[:, :4] == 0).all(1)] = GREY
            ids_Pk = np.concatenate([ids_Pk, num_parts * size + tints_P[:, None]], axis=1)
        return ids_Pk.astype(np.int32).reshape(len(pixels_NHWC), self.form.num_codes)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        num_parts, size = self._parts**2, len(self._parts_Kd)
        codes_Pk = codes_Nc.reshape(-1, num_parts + self._colour)
        ids_Pk = codes_Pk[:, :num_parts] - size * np.arange(num_parts)
        bright_NHW = self.decode_parts(ids_Pk)
        pixels_NHWC: PixelArray = np.repeat(bright_NHW[..., None], 3, axis=3)
        if not self._colour:
            return pixels_NHWC
        tints_NRC = codes_Pk[:, num_parts].reshape(-1, *self._places) - num_parts * size
        for picture in np.flatnonzero((tints_NRC != GREY).any((1, 2))):
            pixels_NHWC[picture] = self._tinted(bright_NHW[picture], tints_NRC[picture])
        return pixels_NHWC

    def _tinted(self, bright_HW: npt.NDArray[np.uint8], tints: IntArray) -> PixelArray:
        """A picture of its brightness and the tints of its squares."""
        tints_HW4 = self._tints_C4[tints].repeat(self._side, 0).repeat(self._side, 1)
        values_HW = bright_HW.astype(np.float64)
        light_HW = values_HW / 255
        red_HW, blue_HW = (
            tints_HW4[..., first] * (1 - light_HW) + tints_HW4[..., first + 1] * light_HW
            for first in (0, 2)
        )
        green_HW = -(_WEIGHTS[0] * red_HW + _WEIGHTS[2] * blue_HW) / _WEIGHTS[1]
        return to_pixels(values_HW[..., None] + np.stack([red_HW, green_HW, blue_HW], axis=-1))

    def codebook(self) -> torch.Tensor:
        """Of each code what it adds to a square, float32 [codebook size, numbers of a square + 4]: a part's darkness, 255
        levels as 1, at its place, or a tint."""
        import torch

        num_parts, (size, dim) = self._parts**2, self._parts_Kd.shape
        rows = np.zeros((self.codebook_size, num_parts * dim + 4), np.float32)
        for part in range(num_parts):
            own = rows[part * size : (part + 1) * size, part * dim : (part + 1) * dim]
            own[:] = 1 - self._parts_Kd / 255
        if self._colour:
            rows[num_parts * size :, num_parts * dim :] = self._tints_C4 / 255
        return torch.from_numpy(rows)


# What is learnt from pictures: the codes of parts, then the tints.


def learnt(
    config: ProductTokenizerConfig, images_NHWC: PixelArray, rounds: Rounds
) -> dict[str, npt.NDArray[Any]]:
    """The weights, see `ProductTokenizerConfig.learn`."""
    images_NHWC = images_NHWC[:: max(1, len(images_NHWC) // _NUM_PICTURES)]
    is_grey_N = (np.ptp(images_NHWC, axis=3) == 0).all((1, 2))
    rng = np.random.default_rng(config.seed)
    inked_NHWC = images_NHWC[is_grey_N] if is_grey_N.any() else images_NHWC
    parts_Kd = _learn_parts(config, inked_NHWC, rounds, rng)
    tints_C4 = np.zeros((config.colours, 4), np.int16)
    coloured_NHWC = images_NHWC[~is_grey_N]
    if len(coloured_NHWC) and config.colours > 1:
        weights: Arrays = {"parts": parts_Kd, "tints": tints_C4}
        ink = ProductTokenizer(config, weights)
        bright_NHW = ink.decode_parts(ink.encode_parts(coloured_NHWC))
        fits_P7 = fits_of(coloured_NHWC, bright_NHW, config.patch_size)
        found_C4 = _learn_tints(fits_P7, config.colours - 1, rounds, rng)
        tints_C4[1 : 1 + len(found_C4)] = found_C4
    return {"parts": parts_Kd, "tints": tints_C4}


def _learn_parts(
    config: ProductTokenizerConfig,
    images_NHWC: PixelArray,
    rounds: Rounds,
    rng: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    """The most frequent parts, and centres of the others."""
    side, number = config.patch_size // config.parts, config.part_codes
    rows = squares_of_values(brightness(images_NHWC), side)
    parts_Qd, _, times_Q = distinct_rows(rows)
    if len(parts_Qd) < number:
        raise DataError(
            "training pictures",
            f"hold {len(parts_Qd):,} different parts, fewer than "
            f"image_tokenizer.part_codes {number:,}",
            "give more pictures, or lower image_tokenizer.part_codes",
        )
    order_Q = np.argsort(-times_Q, kind="stable")
    exact = max(1, round(_EXACT * number))
    others_Q = rng.permutation(order_Q[exact:])[: max(NUM_SQUARES, number)]
    chosen_Q = np.concatenate([order_Q[:exact], others_Q])
    rows_Qd = parts_Qd[chosen_Q].astype(np.float64)
    weights_Q = np.minimum(times_Q[chosen_Q], _MOST_TIMES).astype(np.float64)
    fixed_Fd = rows_Qd[:exact]
    found_Kd = centres_of(rows_Qd, number, rounds(0.8), rng, weights_Q, fixed_Fd)
    parts_Kd: npt.NDArray[np.uint8] = found_Kd.astype(np.uint8)
    return parts_Kd


def _learn_tints(
    fits_P7: FloatArray, number: int, rounds: Rounds, rng: np.random.Generator
) -> FloatArray:
    """Tints that fit the coloured squares best (Lloyd's iteration: each square its best tint, each tint the best of its
    squares)."""
    fits_P7 = fits_P7[(fits_P7[:, :4] != 0).any(1)]
    fits_P7 = fits_P7[rng.permutation(len(fits_P7))[:NUM_SQUARES]]
    tints_C4 = best_tints(fits_P7[:number])
    for _ in rounds(0.2):
        codes_P = tints_of(fits_P7, tints_C4)
        sums_C7 = np.zeros((len(tints_C4), 7))
        np.add.at(sums_C7, codes_P, fits_P7)
        tints_C4 = best_tints(sums_C7)
    return tints_C4


def best_tints(sums_C7: FloatArray) -> FloatArray:
    """The tint with the smallest error of each row of `fits_of`, in whole numbers; where all pixels are equally bright,
    the smaller one of those that fit."""
    found = np.zeros((len(sums_C7), 4))
    dark, both, light = (
        sums_C7[:, place] + extra for place, extra in ((4, 1.0), (5, 0.0), (6, 1.0))
    )
    det = dark * light - both**2
    for first in (0, 2):
        in_dark, in_light = 255 * sums_C7[:, first], 255 * sums_C7[:, first + 1]
        found[:, first] = (light * in_dark - both * in_light) / det
        found[:, first + 1] = (dark * in_light - both * in_dark) / det
    return np.clip(np.rint(found), -255, 255)
