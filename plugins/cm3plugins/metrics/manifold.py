"""Precision, recall (Kynkaanniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al.
2020, arXiv:2002.09797): how much of one set lies within the other's k-nearest-neighbour radii.

A picture's radius is the distance to its k-th neighbour, not counting itself. Distances are computed in
blocks, without an N x N array. Legend: N pictures, M real ones, D features, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import FeatureMetric

Array = npt.NDArray[np.float64]
_BLOCK = 1024


class ManifoldMetric(FeatureMetric):
    """Keeps all features; four scores use the same distances."""

    needs: ClassVar[tuple[Group, ...]] = (("features",), ("reference_features",))

    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k

    @property
    def minimum(self) -> int:
        return self._k + 1

    def _result(self) -> Sequence[Score]:
        made_ND = self.rows("features").astype(np.float64)
        real_MD = self.rows("reference_features").astype(np.float64)
        values = manifold_scores(made_ND, real_MD, self._k)
        return [Score(name, value, len(made_ND), True) for name, value in values.items()]


def manifold_scores(made_ND: Array, real_MD: Array, k: int) -> dict[str, float]:
    """Compute precision, recall, density and coverage of a set of pictures."""
    radius_M, radius_N = squared_radii(real_MD, k), squared_radii(made_ND, k)
    num_around_N = np.zeros(len(made_ND))
    recalled_M = np.zeros(len(real_MD), bool)
    covered_M = np.zeros(len(real_MD), bool)
    for start, distances_BN in _blocks(real_MD, made_ND):
        rows = slice(start, start + len(distances_BN))
        inside_BN = distances_BN < radius_M[rows, None]
        num_around_N += inside_BN.sum(0)
        covered_M[rows] = inside_BN.any(1)  # its nearest picture is within its radius
        recalled_M[rows] = (distances_BN < radius_N).any(1)
    return {
        "precision": float((num_around_N > 0).mean()),
        "recall": float(recalled_M.mean()),
        "density": float(num_around_N.mean() / k),
        "coverage": float(covered_M.mean()),
    }


def squared_radii(rows_ND: Array, k: int) -> Array:
    """Return the squared distance of each row to its k-th nearest other row, float64 [N].

    >>> squared_radii(np.array([[0.0], [1.0], [3.0]]), 1).tolist()
    [1.0, 1.0, 4.0]
    """
    radii = []
    for start, distances_BN in _blocks(rows_ND, rows_ND):
        own = np.arange(len(distances_BN))
        distances_BN[own, start + own] = -1.0  # puts the row itself first, whatever the rounding
        radii.append(np.partition(distances_BN, k, axis=1)[:, k])
    return np.concatenate(radii)


def _blocks(a_ND: Array, b_MD: Array) -> Iterator[tuple[int, Array]]:
    """Yield blocks of rows of `a`: the first row's index, and squared distances to all rows of `b`."""
    squares_M = (b_MD**2).sum(1)
    for start in range(0, len(a_ND), _BLOCK):
        block_BD = a_ND[start : start + _BLOCK]
        distances_BM = (block_BD**2).sum(1)[:, None] + squares_M - 2 * block_BD @ b_MD.T
        yield start, np.maximum(distances_BM, 0)
