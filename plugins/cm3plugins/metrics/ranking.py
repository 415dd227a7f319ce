"""The judge: the rank of the real picture among real ones, by its distance from the generated picture.

A copy of the real picture gets 100; an unrelated picture is among the first k of C candidates with
probability k / C. Legend: N pictures, C candidates, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.errors import DataError
from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import ValueMetric, mean_score

Floats = npt.NDArray[np.float32]
KS = (1, 5)
#: With fewer candidates the score means nothing.
LEAST_CANDIDATES = 10


class JudgeMetric(ValueMetric):
    """Probability, in percent, that the real picture is the nearest, and among the five nearest.

    Args:
        centred: compare directions from the candidates' mean instead of distances.
    """

    needs: ClassVar[tuple[Group, ...]] = (("features", "candidate_features"),)

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self._centred = centred

    def _value(self, sample: Mapping[str, Any]) -> tuple[float, ...]:
        one_D = np.asarray(sample["features"], np.float32)
        real_CD = np.asarray(sample["candidate_features"], np.float32)
        if len(real_CD) < LEAST_CANDIDATES:
            raise DataError(
                "a sample",
                f"has {len(real_CD)} candidates, but the judge needs {LEAST_CANDIDATES} or more",
                "use a data set with more objects, or remove the metric judge",
            )
        distances_C = distances(one_D, real_CD, centred=self._centred)
        return tuple(100 * chance_among_first(distances_C, k) for k in KS)

    def _result(self) -> Sequence[Score]:
        return [
            mean_score(
                f"judge_r{k}",
                {i: own[place] for i, own in self.values.items()},
                higher_is_better=True,
            )
            for place, k in enumerate(KS)
        ]


def distances(one_D: Floats, real_CD: Floats, *, centred: bool) -> Floats:
    """Return the distances of a picture's features from those of real pictures, float32 [C].

    Args:
        one_D: features of the picture.
        real_CD: features of the real pictures.
        centred: minus the cosine of the directions from the real pictures' mean, which ignores what they
            all share; otherwise the squared difference.
    """
    if not centred:
        squared_C: Floats = ((real_CD - one_D) ** 2).sum(1)
        return squared_C
    mean_D = real_CD.mean(0)
    cosines_C: Floats = _unit(real_CD - mean_D) @ _unit(one_D - mean_D)
    return -cosines_C


def chance_among_first(distances_C: npt.NDArray[Any], k: int) -> float:
    """Return the probability that the first is among the k nearest, with ties in random order.

    >>> chance_among_first(np.array([2.0, 1.0, 3.0]), 1), chance_among_first(np.array([2.0, 1.0, 3.0]), 2)
    (0.0, 1.0)
    >>> chance_among_first(np.array([1.0, 1.0, 1.0, 1.0]), 1)
    0.25
    """
    nearer = int((distances_C < distances_C[0]).sum())
    equal = int((distances_C == distances_C[0]).sum())  # including itself
    return min(max((k - nearer) / equal, 0.0), 1.0)


def _unit(x_D: Floats) -> Floats:
    unit: Floats = x_D / np.maximum(np.linalg.norm(x_D, axis=-1, keepdims=True), 1e-12)
    return unit
