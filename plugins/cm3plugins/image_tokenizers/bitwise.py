"""`bitwise`: squares of pixels as several bits each, a code a bit.

Legend: N pictures, P squares of d numbers, k bits of a square, K levels of a coefficient at most, c = rows * columns * k
codes of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
    pictures_of,
    principal_directions,
    squares_of,
    to_pixels,
    whole_numbers,
)

#: Bits of a coefficient at most.
MOST_BITS = 6


@dataclass(kw_only=True)
class BitwiseTokenizerConfig(PatchArraysConfig):
    """A grid of squares with `bits` codes each: the bits of a square's quantised principal coefficients.

    Code j of a place is 2 * j or 2 * j + 1. Finite scalar quantisation (FSQ, arXiv:2309.15505) whose 2**bits codes are
    factorised into bits (as in Infinity, arXiv:2412.04431), without a network: the most important coefficients get most
    bits, each bit going where it lowers the error most. Levels are Lloyd-Max quantisers, written as Gray codes, so that
    neighbouring levels differ in one bit. Has the keys of `PatchArraysConfig`, and:

    Args:
        bits: bits of a square, at most the numbers of a square.

    Limits: squares are encoded alone, so their borders can show; a k-means codebook of as many bits a square keeps more.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**14),
        "patch_size": (1, 2**10),
        "bits": (1, 64),
        "seed": (0, 2**63 - 1),
    }
    label: ClassVar[str] = "bitwise"

    bits: int = 12

    def check(self) -> None:
        """Ranges and combinations; raises a `RecipeError` that names the key."""
        super().check()
        dim = self.patch_size**2 * 3
        if self.bits > dim:
            raise RecipeError(
                "image_tokenizer.bits",
                f"is {self.bits}, and a square of {self.patch_size} pixels has {dim} numbers",
                f"use {dim} or fewer, or a larger patch_size",
            )

    @property
    def codes_per_place(self) -> int:
        """`bits`."""
        return self.bits

    @property
    def codebook_size(self) -> int:
        """Two codes a bit."""
        return 2 * self.bits

    @property
    def form(self) -> PictureForm:
        """`bits` codes a square, one of each pair."""
        rules = CodeRules.by_slot([2] * self.bits)
        return PictureForm.of_grid(*self.places, self.bits, rules)

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {"patch_size": self.patch_size, "bits": self.bits}

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        dim = self.patch_size**2 * 3
        return {
            "mean": ("float32", (dim,)),
            "directions": ("int16", (self.bits, dim)),
            "bits": ("int16", (self.bits,)),
            "edges": ("float64", (self.bits, 2**MOST_BITS - 1)),
            "values": ("float32", (self.bits, 2**MOST_BITS)),
        }

    def of_arrays(self, arrays: Arrays) -> BitwiseTokenizer:
        """See the base."""
        return BitwiseTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """Directions, the levels of each for every number of bits, and how many bits each gets.

        Raises:
            DataError: squares differ in fewer directions than bits.
        """
        squares_Pd = squares_of(images_NHWC, self.patch_size)
        chosen = np.random.default_rng(self.seed).permutation(len(squares_Pd))[:NUM_SQUARES]
        rows_Pd = squares_Pd[np.sort(chosen)].astype(np.float64)
        differ = np.linalg.matrix_rank(rows_Pd - rows_Pd.mean(0)) if len(rows_Pd) else 0
        if differ < self.bits:
            raise DataError(
                "training pictures",
                f"their squares differ in {differ} directions, fewer than image_tokenizer.bits "
                f"{self.bits}",
                "give more pictures, or lower image_tokenizer.bits",
            )
        mean_d, directions_kd = principal_directions(rows_Pd, self.bits, rounds(0.5), self.seed)
        whole_kd = whole_numbers(directions_kd)
        products_Pk = rows_Pd @ whole_kd.T.astype(np.float64)
        lengths_k = (whole_kd.astype(np.float64) ** 2).sum(1)
        ways = [
            _quantisers(products_Pk, 2**number, rounds(0.5 / MOST_BITS))
            for number in range(MOST_BITS + 1)
        ]
        errors_bk = np.stack([_errors(products_Pk, *way) for way in ways]) / lengths_k
        bits_k = shared_out(errors_bk, self.bits)
        edges_kK = np.zeros((self.bits, 2**MOST_BITS - 1))
        centres_kK = np.zeros((self.bits, 2**MOST_BITS))
        for place, number in enumerate(bits_k.tolist()):
            edges_kK[place, : 2**number - 1], centres_kK[place, : 2**number] = (
                found[place] for found in ways[number]
            )
        along_kK = (centres_kK - (whole_kd @ mean_d)[:, None]) / lengths_k[:, None]
        return {
            "mean": mean_d.astype(np.float32),
            "directions": whole_kd,
            "bits": bits_k.astype(np.int16),
            "edges": edges_kK,
            "values": along_kK.astype(np.float32),
        }


def _quantisers(products_Pk: FloatArray, levels: int, rounds: Any) -> tuple[FloatArray, FloatArray]:
    """Lloyd-Max quantisers of each column: edges [k, levels - 1] between the centres, and centres [k, levels], rising.
    Level l is of values from edge l - 1 up to edge l. Starts with quantiles."""
    shares = (np.arange(levels) + 0.5) / levels
    centres_kK = np.quantile(products_Pk, shares, axis=0).T.copy()
    for _ in rounds:
        before = centres_kK.copy()
        for centres, column in zip(centres_kK, products_Pk.T, strict=True):
            level = np.searchsorted((centres[1:] + centres[:-1]) / 2, column, side="right")
            counts = np.bincount(level, minlength=levels)
            sums = np.bincount(level, column, minlength=levels)
            centres[counts > 0] = sums[counts > 0] / counts[counts > 0]
        if np.array_equal(before, centres_kK):
            break
    return (centres_kK[:, 1:] + centres_kK[:, :-1]) / 2, centres_kK


def _errors(products_Pk: FloatArray, edges_kK: FloatArray, centres_kK: FloatArray) -> FloatArray:
    """The sum of squared errors of each column's quantiser."""
    columns = zip(products_Pk.T, edges_kK, centres_kK, strict=True)
    return np.array(
        [((one - to[np.searchsorted(at, one, side="right")]) ** 2).sum() for one, at, to in columns]
    )


def shared_out(errors_bk: FloatArray, number: int) -> IntArray:
    """How many bits each column gets, `number` in all: one after the other where it lowers the error most.

    >>> shared_out(np.array([[9.0, 4.0], [3.0, 1.0], [2.0, 0.0]]), 3).tolist()
    [1, 2]

    Args:
        errors_bk: the error of each column with 0, 1, ... bits.
        number: at most all the bits that `errors_bk` has errors of.
    """
    bits_k = np.zeros(errors_bk.shape[1], np.int32)
    gains_bk = errors_bk[:-1] - errors_bk[1:]
    columns = np.arange(len(bits_k))
    for _ in range(number):
        next_k = np.minimum(bits_k, len(gains_bk) - 1)
        gains_k = np.where(bits_k < len(gains_bk), gains_bk[next_k, columns], -np.inf)
        bits_k[gains_k.argmax()] += 1
    return bits_k


class BitwiseTokenizer(ArrayTokenizer):
    """Pixels <-> bits of quantised coefficients of each square.

    Args:
        config: its keys.
        arrays: mean [d] and directions [k, d] of squares, the number of bits of each direction [k], edges [k, K - 1] and
            values [k, K] of its levels.
    """

    def __init__(self, config: BitwiseTokenizerConfig, arrays: Arrays) -> None:
        super().__init__(config, arrays)
        self._side, self._places = config.patch_size, config.places
        self._mean_d = np.asarray(arrays["mean"], np.float64)
        used = np.flatnonzero(arrays["bits"])
        self._bits_u = np.asarray(arrays["bits"], np.int32)[used]
        self._directions_ud = np.asarray(arrays["directions"], np.float64)[used]
        self._edges_uK = np.asarray(arrays["edges"], np.float64)[used]
        self._values_uK = np.asarray(arrays["values"], np.float64)[used]

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        rows_Pd = squares_of(pixels_NHWC, self._side).astype(np.float64)
        products_uP = self._directions_ud @ rows_Pd.T
        bits = []
        for number, edges, products in zip(
            self._bits_u.tolist(), self._edges_uK, products_uP, strict=True
        ):
            levels = np.searchsorted(edges[: 2**number - 1], products, side="right")
            gray = levels ^ levels >> 1
            bits += [gray >> place & 1 for place in range(number)[::-1]]
        codes_Pk: IntArray = np.stack(bits, axis=1).astype(np.int32)
        codes_Pk += 2 * np.arange(len(bits), dtype=np.int32)
        return codes_Pk.reshape(len(pixels_NHWC), self.form.num_codes)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        bits_kP = codes_Nc.reshape(-1, int(self._bits_u.sum())).T % 2
        squares_Pd = np.repeat(self._mean_d[None], bits_kP.shape[1], axis=0)
        of_each = np.split(bits_kP, np.cumsum(self._bits_u)[:-1])
        for bits_bP, values, direction in zip(
            of_each, self._values_uK, self._directions_ud, strict=True
        ):
            # a bit of a level is the exclusive or of the bits of its Gray code down to it
            levels_bP = np.bitwise_xor.accumulate(bits_bP, axis=0)
            levels_P = 2 ** np.arange(len(bits_bP))[::-1] @ levels_bP
            squares_Pd += values[levels_P][:, None] * direction
        pictures: PixelArray = pictures_of(to_pixels(squares_Pd), self._side, self._places)
        return pictures
