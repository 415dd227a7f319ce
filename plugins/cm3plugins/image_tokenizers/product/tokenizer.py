"""The tokenizer `product`. Brightness and colour are apart: parts say how bright each pixel is, the colour code what tint
that brightness has. A grey picture has no tint anywhere, so nothing that is decoded from its codes is coloured.

Legend: N pictures, P squares, Q parts of d pixels, K codes of a part, k codes of a square, C colour codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3plugins.image_tokenizers.by_arrays import (
    Arrays,
    ArrayTokenizer,
    FloatArray,
    nearest,
    to_pixels,
)

if TYPE_CHECKING:
    import torch

    from cm3plugins.image_tokenizers.product import ProductTokenizerConfig

#: Red, green and blue in the brightness, of 256.
_WEIGHTS = 77, 150, 29
#: The colour code of a square without colour.
GREY = 0


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
