"""Metrics `copy` and `copy_of_training`: how many pictures are nearly copies of a document before their prompt, or of any
training picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from cm3core.interfaces.metric import Group, Metric, MetricConfig, Score


@dataclass(kw_only=True)
class CopyConfig(MetricConfig):
    """How many pictures are nearly copies of a document that was prepended to their prompt, in percent, and the mean
    of each picture's nearness to the nearest of its documents (0 without any), see `cm3run.nearness`.

    Args:
        least: nearness from which a picture counts as a copy.
    """

    bounded: ClassVar[bool] = True
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"least": (0, 1)}
    least: float = 0.8  # NEARLY_A_COPY of cm3run.nearness, which imports PIL

    def build(self) -> Metric:
        """A metric without samples."""
        self.check()
        return CopyMetric(self.least)


@dataclass(kw_only=True)
class TrainingCopyConfig(CopyConfig):
    """How many pictures are nearly copies of a picture of the data set's training split, in percent; the mean of
    each picture's nearness to the nearest of them, see `cm3run.nearness`; and how many are blank, in percent: a blank
    picture is a copy of nothing, though the training data may have some, and its nearness is 0. Real held-out pictures show
    what is inevitable: the data's own near-duplicates.

    Args:
        least: nearness from which a picture counts as a copy.
    """

    version: ClassVar[int] = 2  # in 1, blank pictures were copies of blank ones

    def build(self) -> Metric:
        """A metric without samples."""
        self.check()
        return TrainingCopyMetric(self.least)


class CopyMetric(Metric):
    """The nearness of each sample to the nearest of its documents."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "documents"),)
    _names: ClassVar[tuple[str, str]] = ("copies", "nearness")

    def __init__(self, least: float) -> None:
        self._least = least
        self._nearness: dict[int, float] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        from cm3run.nearness import nearness

        for index, picture, documents in zip(
            indices, columns["pictures"], columns["documents"], strict=True
        ):
            self._nearness[index] = max(
                (nearness(picture, document) for document in documents), default=0.0
            )

    def _merge(self, other: CopyMetric) -> None:
        self._nearness |= other._nearness

    def _result(self) -> Sequence[Score]:
        from cm3plugins.metrics.collecting import mean_score

        near = dict(sorted(self._nearness.items()))
        copies = {index: 100.0 * (value >= self._least) for index, value in near.items()}
        return [
            mean_score(self._names[0], copies, higher_is_better=False),
            mean_score(self._names[1], near, higher_is_better=False),
        ]


class TrainingCopyMetric(CopyMetric):
    """The nearness of each sample to the nearest training picture, which the evaluation finds."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "training_nearness"),)
    _names: ClassVar[tuple[str, str]] = ("training_copies", "training_nearness")

    def __init__(self, least: float) -> None:
        super().__init__(least)
        self._blank: dict[int, float] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        from cm3run.nearness import is_blank

        shown = zip(indices, columns["pictures"], columns["training_nearness"], strict=True)
        for index, picture, near in shown:
            blank = is_blank(picture)
            self._blank[index] = 100.0 * blank
            self._nearness[index] = 0.0 if blank else float(near)

    def _merge(self, other: CopyMetric) -> None:
        assert isinstance(other, TrainingCopyMetric)
        super()._merge(other)
        self._blank |= other._blank

    def _result(self) -> Sequence[Score]:
        from cm3plugins.metrics.collecting import mean_score

        blank = dict(sorted(self._blank.items()))
        return [*super()._result(), mean_score("blank", blank, higher_is_better=False)]
