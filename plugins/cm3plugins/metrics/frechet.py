"""Frechet distance of two sets of features, modelled as Gaussians (Heusel et al. 2017,
arXiv:1706.08500): |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

Only sums in float64 are kept, D^2 numbers per set, so pictures can be streamed. The eigenvalues of S1 S2
equal those of the symmetric R' S2 R for any R with S1 = R R'. So one Cholesky decomposition and the
eigenvalues of one symmetric matrix replace a general matrix root: faster, and never complex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Metric, Score

Array = npt.NDArray[np.float64]


class GaussianSums:
    """Sums from which mean and covariance are computed."""

    def __init__(self) -> None:
        self.num = 0
        self._sum_D: Array = np.zeros(0)
        self._sum_DD: Array = np.zeros((0, 0))

    def add(self, features_ND: Any) -> None:
        """Add features [N, D]."""
        rows_ND = np.asarray(features_ND, np.float64)
        self._add(len(rows_ND), rows_ND.sum(0), rows_ND.T @ rows_ND)

    def merge(self, other: GaussianSums) -> None:
        """Add the sums of other features."""
        if other.num:
            self._add(other.num, other._sum_D, other._sum_DD)

    def _add(self, num: int, sum_D: Array, sum_DD: Array) -> None:
        if not self.num:
            self.num, self._sum_D, self._sum_DD = num, sum_D.copy(), sum_DD.copy()
            return
        if sum_D.shape != self._sum_D.shape:
            raise DataError(
                "features",
                f"have {len(sum_D)} numbers per picture, but earlier ones have {len(self._sum_D)}",
                "use one extractor",
            )
        self.num += num
        self._sum_D += sum_D
        self._sum_DD += sum_DD

    @property
    def num_features(self) -> int:
        """Number of features per picture, D."""
        return len(self._sum_D)

    def gaussian(self) -> tuple[Array, Array]:
        """Return mean [D] and covariance [D, D] (divided by num - 1)."""
        mean_D = self._sum_D / self.num
        return mean_D, (self._sum_DD - self.num * np.outer(mean_D, mean_D)) / (self.num - 1)


def frechet_distance(mean1_D: Array, cov1_DD: Array, mean2_D: Array, cov2_DD: Array) -> float:
    """Return the squared Frechet distance of two Gaussians.

    >>> one = np.ones((1, 1))
    >>> frechet_distance(np.zeros(1), 4 * one, np.array([3.0]), one)  # 3^2 + (2 - 1)^2
    10.0
    """
    root_DD = _root(cov1_DD)
    product_DD = root_DD.T @ cov2_DD @ root_DD
    roots_D = np.sqrt(np.maximum(np.linalg.eigvalsh((product_DD + product_DD.T) / 2), 0))
    difference_D = mean1_D - mean2_D
    traces = np.trace(cov1_DD) + np.trace(cov2_DD)
    return float(difference_D @ difference_D + traces - 2 * roots_D.sum())


def _root(cov_DD: Array) -> Array:
    """Return R with R R' = the covariance."""
    try:
        root_DD: Array = np.asarray(np.linalg.cholesky(cov_DD), np.float64)
    except np.linalg.LinAlgError:  # singular, e.g. with fewer pictures than features
        values_D, vectors_DD = np.linalg.eigh(cov_DD)
        root_DD = vectors_DD * np.sqrt(np.maximum(values_D, 0))
    return root_DD


class FrechetMetric(Metric):
    """Keeps the sums of two Gaussians."""

    needs: ClassVar[tuple[Group, ...]] = (("features",), ("reference_features",))

    def __init__(self, minimum: int) -> None:
        self._minimum = minimum
        self._sums = {group: GaussianSums() for group in self.needs}

    @property
    def minimum(self) -> int:
        return self._minimum

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        self._sums[group].add(columns[group[0]])

    def _merge(self, other: FrechetMetric) -> None:
        for group, sums in other._sums.items():
            self._sums[group].merge(sums)

    def _result(self) -> Sequence[Score]:
        made, real = (self._sums[group] for group in self.needs)
        distance = frechet_distance(*made.gaussian(), *real.gaussian())
        num, num_features = min(made.num, real.num), made.num_features
        note = f"mostly bias: {num:,} pictures with {num_features:,} features; kid is unbiased"
        return [
            Score(
                "fid",
                distance,
                made.num,
                higher_is_better=False,
                note=note if num <= num_features else "",
            )
        ]
