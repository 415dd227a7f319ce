"""Metric `scenes`: how often the exact checker accepts a picture, by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cm3core.interfaces.metric import Group, Metric, MetricConfig, Score

CATEGORIES = ("colour", "counting", "two objects", "position")


@dataclass(kw_only=True)
class ScenesConfig(MetricConfig):
    """Percentage of scenes that an exact checker accepts: overall (the mean of the categories, as in
    GenEval) and for colour, counting, two objects and position."""

    def build(self) -> Metric:
        """A metric without samples."""
        return ScenesMetric()


class ScenesMetric(Metric):
    """Whether each sample is right."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets"),)
    minimum = len(CATEGORIES)

    def __init__(self) -> None:
        self._right: dict[int, tuple[str, float]] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        from cm3apps.evaluation.scene_checker import scene_is_right

        pairs = zip(columns["pictures"], columns["targets"], strict=True)
        for index, (pixels, target) in zip(indices, pairs, strict=True):
            right = "objects" in target and scene_is_right(pixels, target)
            self._right[index] = (str(target.get("category", "colour")), 100.0 * right)

    def _merge(self, other: ScenesMetric) -> None:
        self._right |= other._right

    def _result(self) -> Sequence[Score]:
        own = {
            name: {
                i: right for i, (category, right) in sorted(self._right.items()) if category == name
            }
            for name in CATEGORIES
        }
        means = {name: sum(rows.values()) / len(rows) for name, rows in own.items() if rows}
        overall = sum(means.values()) / len(means)
        return [
            Score("scenes", overall, len(self._right), True),
            *(
                Score(
                    f"scenes_{name.replace(' ', '_')}", mean, len(own[name]), True, None, own[name]
                )
                for name, mean in means.items()
            ),
        ]
