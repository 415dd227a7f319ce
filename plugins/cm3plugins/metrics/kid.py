"""Kernel inception distance (Binkowski et al. 2018, arXiv:1801.01401, section 4): the unbiased
estimate of the squared maximum mean discrepancy under the kernel (x . y / D + 1)^3, averaged over
random subsets of both sets.

Unlike the Frechet distance, it is unbiased for few pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import FeatureMetric


class KIDMetric(FeatureMetric):
    """Keeps all features; a subset's kernels are the largest arrays."""

    needs: ClassVar[tuple[Group, ...]] = (("features",), ("reference_features",))

    def __init__(self, num_subsets: int, subset_size: int, seed: int) -> None:
        super().__init__()
        self._num_subsets, self._size, self._seed = num_subsets, subset_size, seed

    @property
    def minimum(self) -> int:
        return self._size

    def _result(self) -> Sequence[Score]:
        made_ND, real_MD = self.rows("features"), self.rows("reference_features")
        rng = np.random.default_rng(self._seed)
        distances = [
            mmd2(
                made_ND[rng.choice(len(made_ND), self._size, replace=False)],
                real_MD[rng.choice(len(real_MD), self._size, replace=False)],
            )
            for _ in range(self._num_subsets)
        ]
        value, spread = float(np.mean(distances)), float(np.std(distances))
        return [Score("kid", value, len(made_ND), higher_is_better=False, spread=spread)]


def mmd2(x_ND: npt.ArrayLike, y_MD: npt.ArrayLike) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy; may be below 0 by chance.

    >>> x = np.array([[1.0], [1.0]])
    >>> mmd2(x, x + 1)  # (1 + 1) ** 3 = 8 within, (4 + 1) ** 3 = 125 within, (2 + 1) ** 3 = 27 between
    79.0
    """
    x, y = np.asarray(x_ND, np.float64), np.asarray(y_MD, np.float64)

    def kernel(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        values: npt.NDArray[np.float64] = (a @ b.T / x.shape[1] + 1) ** 3
        return values

    within = 0.0
    for own in (x, y):
        kernel_NN = kernel(own, own)
        within += (kernel_NN.sum() - kernel_NN.trace()) / (len(own) * (len(own) - 1))
    return float(within - 2 * kernel(x, y).mean())
