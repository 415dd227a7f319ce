"""`bitwise`: squares of pixels as several bits each, a code a bit.

Legend: N pictures, P squares of d numbers, k bits of a square, c = rows * columns * k codes of a picture.
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


@dataclass(kw_only=True)
class BitwiseTokenizerConfig(PatchArraysConfig):
    """A grid of squares with `bits` codes each: on which side of a hyperplane the square is, once for every bit.

    Code j of a place is 2 * j or 2 * j + 1. Lookup-free quantisation (MAGVIT-v2, arXiv:2310.05737) with its 2**bits
    codes factorised into bits, without a network: squares are projected on their first `bits` principal directions,
    whitened, turned so that signs lose little (ITQ, Gong and Lazebnik 2011), and decoded by least squares. Has the keys
    of `PatchArraysConfig`, and:

    Args:
        bits: bits of a square, at most the numbers of a square.

    Limits: every square is a base colour plus or minus `bits` fixed patterns; a smooth ramp needs more bits than a
    k-means codebook of equal size.
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
        return PictureForm.of_grid(*self.places, self.bits, CodeRules.by_slot([2] * self.bits))

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {"patch_size": self.patch_size, "bits": self.bits}

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        dim = self.patch_size**2 * 3
        return {
            "directions": ("int16", (self.bits, dim)),
            "edges": ("float64", (self.bits,)),
            "patterns": ("float32", (self.bits, dim)),
            "base": ("float32", (dim,)),
        }

    def of_arrays(self, arrays: Arrays) -> BitwiseTokenizer:
        """See the base."""
        return BitwiseTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """Directions and edges, then the patterns that restore squares best from their signs.

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
        spread_k = ((rows_Pd - mean_d) @ directions_kd.T).std(0)
        whitening_kd = directions_kd / spread_k[:, None]
        turned_kd = _turn((rows_Pd - mean_d) @ whitening_kd.T, rounds(0.5)) @ whitening_kd
        whole_kd = whole_numbers(turned_kd)
        edges_k = np.rint(whole_kd @ mean_d) + 0.5
        signs_Pk = np.where(rows_Pd @ whole_kd.T.astype(np.float64) > edges_k, 1.0, -1.0)
        known = np.column_stack([signs_Pk, np.ones(len(signs_Pk))])
        solved = np.linalg.lstsq(known, rows_Pd, rcond=None)[0].astype(np.float32)
        return {
            "directions": whole_kd,
            "edges": edges_k,
            "patterns": solved[:-1],
            "base": solved[-1],
        }


def _turn(whitened_Pk: FloatArray, rounds: Any) -> FloatArray:
    """The rotation [k, k] after which squares are nearest to their signs, by alternation from none (ITQ)."""
    turn_kk = np.eye(whitened_Pk.shape[1])
    for _ in rounds:
        signs_Pk = np.where(whitened_Pk @ turn_kk.T > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(signs_Pk.T @ whitened_Pk)
        found = left @ right
        same, turn_kk = np.allclose(found, turn_kk, atol=1e-9), found
        if same:
            break
    return turn_kk


class BitwiseTokenizer(ArrayTokenizer):
    """Pixels <-> signs of k projections of each square.

    Args:
        config: its keys.
        arrays: directions int16 [k, d] and edges [k] of the signs; patterns [k, d] and base [d] of squares.
    """

    def __init__(self, config: BitwiseTokenizerConfig, arrays: Arrays) -> None:
        super().__init__(config, arrays)
        self._side, self._places, self._bits = config.patch_size, config.places, config.bits
        self._directions_kd = np.asarray(arrays["directions"], np.float64)
        self._edges_k = np.asarray(arrays["edges"], np.float64)
        self._patterns_kd = np.asarray(arrays["patterns"], np.float64)
        self._base_d = np.asarray(arrays["base"], np.float64)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        rows_Pd = squares_of(pixels_NHWC, self._side).astype(np.float64)
        ones_Pk = rows_Pd @ self._directions_kd.T > self._edges_k
        codes_Pk = 2 * np.arange(self._bits, dtype=np.int32) + ones_Pk
        return codes_Pk.astype(np.int32).reshape(len(pixels_NHWC), self.form.num_codes)

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        signs_Pk = codes_Nc.reshape(-1, self._bits) % 2 * 2.0 - 1.0
        squares_Pd = self._base_d + signs_Pk @ self._patterns_kd
        pictures: PixelArray = pictures_of(to_pixels(squares_Pd), self._side, self._places)
        return pictures
