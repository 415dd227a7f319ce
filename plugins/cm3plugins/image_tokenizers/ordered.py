"""`ordered`: pictures as a sequence of principal coefficients, the most important first.

Legend: N pictures of H x W pixels, d = H * W * 3 numbers of a picture, n coefficients, K levels, c = n + 1 codes of a
picture's array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import IntArray, PixelArray
from cm3core.errors import DataError
from cm3core.picture_form import PictureForm
from cm3plugins.image_tokenizers.by_arrays import (
    Arrays,
    ArrayTokenizer,
    ArrayTokenizerConfig,
    FloatArray,
    Rounds,
    Shapes,
    principal_directions,
    to_pixels,
    whole_numbers,
)


@dataclass(kw_only=True)
class OrderedTokenizerConfig(ArrayTokenizerConfig):
    """A sequence of codes that decodes to a finer picture with every code: quantised coefficients of a PCA.

    Code j is the level of coefficient j; the code `levels` ends the picture. `encode` writes all `num_codes`
    coefficients and the end. `decode` takes any number of them, at least one: a missing coefficient is its mean. Nested
    dropout makes a linear autoencoder's units the principal components, in this order (Rippel et al. 2014,
    arXiv:1402.0915): here they are computed. Levels are equally far apart, as far for all coefficients, so the less
    important ones take few of them and are easy to predict. Has the keys of `ArrayTokenizerConfig`, and:

    Args:
        num_codes: maximum number of coefficients of a picture; training needs more pictures than that.
        levels: values of a coefficient.

    Limits: linear, so edges are soft and objects at different places have little in common; codes have no places, so
    a part of a picture can't be redrawn.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "resolution": (1, 2**10),
        "num_codes": (1, 2**14),
        "levels": (2, 2**16),
        "seed": (0, 2**63 - 1),
    }
    label: ClassVar[str] = "ordered"

    num_codes: int = 64
    levels: int = 32

    @property
    def codebook_size(self) -> int:
        """The levels and the end."""
        return self.levels + 1

    @property
    def form(self) -> PictureForm:
        """At most `num_codes` codes and the end."""
        return PictureForm.sequence(self.num_codes + 1, self.levels, self.codebook_size)

    @property
    def sizes(self) -> dict[str, int]:
        """See the base."""
        return {
            "resolution": self.resolution,
            "num_codes": self.num_codes,
            "levels": self.levels,
        }

    @property
    def shapes(self) -> Shapes:
        """See the base."""
        number, dim = self.num_codes, self.resolution**2 * 3
        return {
            "mean": ("float32", (dim,)),
            "directions": ("int16", (number, dim)),
            "edges": ("float64", (number, self.levels - 1)),
            "values": ("float32", (number, self.levels)),
        }

    def of_arrays(self, arrays: Arrays) -> OrderedTokenizer:
        """See the base."""
        return OrderedTokenizer(self, arrays)

    def learn(self, images_NHWC: PixelArray, rounds: Rounds) -> dict[str, npt.NDArray[Any]]:
        """Directions, then the levels of each.

        Raises:
            DataError: there are too few pictures.
        """
        dim = self.resolution**2 * 3
        if self.num_codes >= min(len(images_NHWC), dim + 1):
            raise DataError(
                "training pictures",
                f"{len(images_NHWC):,} of {dim:,} numbers each have at most "
                f"{max(0, min(len(images_NHWC) - 1, dim)):,} principal coefficients, and "
                f"image_tokenizer.num_codes is {self.num_codes:,}",
                "give more pictures, or lower image_tokenizer.num_codes",
            )
        rows_Nd = images_NHWC.reshape(len(images_NHWC), -1).astype(np.float64)
        mean_d, directions_nd = principal_directions(
            rows_Nd, self.num_codes, rounds(0.8), self.seed
        )
        whole_nd = whole_numbers(directions_nd)
        # how far pictures are along each direction, in pixels
        lengths_n = np.sqrt((whole_nd.astype(np.float64) ** 2).sum(1))
        along_Nn = (rows_Nd - mean_d) @ whole_nd.T.astype(np.float64) / lengths_n
        edges_K, values_nK = _levels(along_Nn, self.levels, rounds(0.2))
        return {
            "mean": mean_d.astype(np.float32),
            "directions": whole_nd,
            "edges": edges_K * lengths_n[:, None] + (whole_nd @ mean_d)[:, None],
            "values": (values_nK / lengths_n[:, None]).astype(np.float32),
        }


def _levels(along_Nn: FloatArray, levels: int, rounds: Any) -> tuple[FloatArray, FloatArray]:
    """Levels of all coefficients with one step, the best that rounds find: edges [levels - 1] between the levels, and
    values [n, levels], the mean of a level's coefficients. Each round tries a step a tenth smaller."""
    middles_K = np.arange(levels) - (levels - 1) / 2
    best, step = np.inf, 2 * float(np.abs(along_Nn).max()) / levels
    edges_K, values_nK = np.zeros(0), np.zeros((0, 0))
    for _ in rounds:
        tried_K = (middles_K[1:] + middles_K[:-1]) / 2 * step
        level_Nn = np.searchsorted(tried_K, along_Nn, side="right")
        error = float(((middles_K[level_Nn] * step - along_Nn) ** 2).sum())
        if error >= best:
            break
        best, edges_K = error, tried_K
        values_nK = np.tile(middles_K * step, (along_Nn.shape[1], 1))
        for values, level, along in zip(values_nK, level_Nn.T, along_Nn.T, strict=True):
            counts = np.bincount(level, minlength=levels)
            sums = np.bincount(level, along, minlength=levels)
            values[counts > 0] = sums[counts > 0] / counts[counts > 0]
        step *= 0.9
    return edges_K, values_nK


class OrderedTokenizer(ArrayTokenizer):
    """Pixels <-> levels of principal coefficients, then the end code.

    Args:
        config: its keys.
        arrays: mean [d] and directions [n, d] of pictures, edges [n, K - 1] and values [n, K] of levels.
    """

    def __init__(self, config: OrderedTokenizerConfig, arrays: Arrays) -> None:
        super().__init__(config, arrays)
        self._end = config.levels
        self._mean_d = np.asarray(arrays["mean"], np.float64)
        self._directions_nd = np.asarray(arrays["directions"], np.float64)
        self._edges_nK = np.asarray(arrays["edges"], np.float64)
        self._values_nK = np.asarray(arrays["values"], np.float64)

    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        number = len(self._directions_nd)
        rows_Nd = pixels_NHWC.reshape(-1, len(self._mean_d)).astype(np.float64)
        codes_Nc = np.full((len(rows_Nd), number + 1), self._end, np.int32)
        products_nN = self._directions_nd @ rows_Nd.T
        for place, (edges, product) in enumerate(zip(self._edges_nK, products_nN, strict=True)):
            codes_Nc[:, place] = np.searchsorted(edges, product, side="right")
        return codes_Nc

    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        levels_Nn = codes_Nc[:, :-1]
        there_Nn = levels_Nn != self._end
        places = np.arange(levels_Nn.shape[1])
        values_Nn = np.where(there_Nn, self._values_nK[places, levels_Nn * there_Nn], 0.0)
        rows_Nd = self._mean_d + values_Nn @ self._directions_nd
        return to_pixels(rows_Nd).reshape(-1, *self.image_size, 3)
