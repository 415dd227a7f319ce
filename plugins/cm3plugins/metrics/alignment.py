"""How well pictures fit their prompts, from an extractor that reads both: CLIP score (Hessel et al.
2021, arXiv:2104.08718) and R-precision (Xu et al. 2018, arXiv:1711.10485)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from cm3core.interfaces.metric import Group, Score
from cm3plugins.metrics.collecting import FeatureMetric, Rows, mean_score


class CLIPScoreMetric(FeatureMetric):
    """Cosine of picture and prompt, times a weight."""

    needs: ClassVar[tuple[Group, ...]] = (("features", "text_features"),)

    def __init__(self, weight: float, clip_below_zero: bool) -> None:
        super().__init__()
        self._weight, self._clipped = weight, clip_below_zero

    def _result(self) -> Sequence[Score]:
        indices, pictures_ND = self.numbered("features")
        cosines_N = (_unit(pictures_ND) * _unit(self.rows("text_features"))).sum(1)
        if self._clipped:
            cosines_N = np.maximum(cosines_N, 0)
        values = dict(zip(indices, (self._weight * cosines_N).tolist(), strict=True))
        return [mean_score("clip_score", values, higher_is_better=True)]


class RPrecisionMetric(FeatureMetric):
    """Whether a picture fits its own prompt better than other prompts."""

    needs: ClassVar[tuple[Group, ...]] = (("features", "text_features"),)

    def __init__(self, num_others: int, seed: int) -> None:
        super().__init__()
        self._num_others, self._seed = num_others, seed

    @property
    def minimum(self) -> int:
        return self._num_others + 1

    def _result(self) -> Sequence[Score]:
        indices, pictures_ND = self.numbered("features")
        pictures_ND = _unit(pictures_ND)
        texts_ND = _unit(self.rows("text_features"))
        rng, first = np.random.default_rng(self._seed), {}
        for place, index in enumerate(indices):
            others = rng.choice(len(indices) - 1, self._num_others, replace=False)
            others += others >= place  # skips its own
            own = float(texts_ND[place] @ pictures_ND[place])
            # an equal prompt of another picture counts against it
            first[index] = float(own > (texts_ND[others] @ pictures_ND[place]).max())
        return [mean_score("r_precision", first, higher_is_better=True)]


def _unit(rows_ND: Rows) -> Rows:
    lengths_N1 = np.linalg.norm(rows_ND.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(rows_ND / np.maximum(lengths_N1, 1e-12), np.float64)
