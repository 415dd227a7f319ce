"""Metrics `thing` and `usable`: whether drawings of icons show what was asked for, and whether a set could take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.metric import Case, Group, Metric, MetricConfig, Score
from cm3core.interfaces.reach import TEXT, Outside

if TYPE_CHECKING:
    from cm3icons.evaluation.usable import Asked, IconJudge, Verdict

#: What a target must state.
_TARGET = ("group", "set", "style", "id")


@dataclass(kw_only=True)
class ThingConfig(MetricConfig):
    """How often a drawing finds its own name among 100 names of its hand, in percent, and how often it is
    among the first five; the name's mean rank; and how often one of the drawing's five nearest real ones by pixels has a
    name that means the asked thing, in percent.

    The names are ranked by a network that learned from `train` of the closed splits alone, and by the names of real
    drawings of other designers that read alike. For icons without colour. The score of real drawings is the upper limit.

    Args:
        sets: names of the icon sets whose real drawings the judge knows, the asked one among them; empty: all, which
            takes some minutes the first time. Scores by other sets are not comparable.
    """

    bounded: ClassVar[bool] = True
    outside: ClassVar[Mapping[str, Outside]] = {"sets": TEXT}
    sets: tuple[str, ...] = ()

    def build(self) -> Metric:
        """A metric without samples."""
        self.check()
        return ThingMetric(_judge(self.sets))

    def protocol(self) -> dict[str, Any]:
        """The version, the sets, and the hash of what verdicts depend on."""
        known = {"sets": list(self.sets), "judge": _judge(self.sets).fingerprint}
        return super().protocol() | known


@dataclass(kw_only=True)
class UsableConfig(ThingConfig):
    """How often a drawing is usable, in percent: it finds its own name (see `thing`), it is in the asked hand, and it is
    no copy. Its three parts stand beside it.

    A drawing is in a hand, a set and a style, if it is no farther from it than nine in ten of its real drawings are. It
    is a copy if it is nearly the same, wherever and at whatever size it is drawn, as a document before the prompt or as
    any drawing of `train`; for a set that is held out whole, as any other drawing of that set too. The score of real
    drawings is the upper limit.
    """

    def build(self) -> Metric:
        """A metric without samples."""
        self.check()
        return UsableMetric(_judge(self.sets))


class ThingMetric(Metric):
    """Ranks of the asked names."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets"),)

    def __init__(self, judge: IconJudge) -> None:
        self._judge = judge
        self._found: dict[int, tuple[int, bool]] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        judge, pictures = self._judge, columns["pictures"]
        asked = [_asked(target, "thing") for target in columns["targets"]]
        ranks = judge.things(pictures, asked)
        for index, picture, own, (rank, _) in zip(indices, pictures, asked, ranks, strict=True):
            self._found[index] = rank, judge.neighbours(picture, own)

    def _merge(self, other: ThingMetric) -> None:
        self._found |= other._found

    def _result(self) -> Sequence[Score]:
        return _thing_scores(dict(sorted(self._found.items())))


class UsableMetric(Metric):
    """Verdicts of the samples."""

    needs: ClassVar[tuple[Group, ...]] = (("pictures", "targets", "documents"),)
    draws_sheet: ClassVar[bool] = True

    def __init__(self, judge: IconJudge) -> None:
        self._judge = judge
        self._found: dict[int, Verdict] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        asked = [_asked(target, "usable") for target in columns["targets"]]
        found = self._judge.judge(columns["pictures"], asked, columns["documents"])
        self._found.update(zip(indices, found, strict=True))

    def _merge(self, other: UsableMetric) -> None:
        self._found |= other._found

    def sheet(self, cases: Sequence[Case]) -> PixelArray:
        """All cases with their verdicts."""
        from cm3icons.evaluation.verdict_sheet import verdict_sheet

        return verdict_sheet(cases, self.verdicts)

    @property
    def verdicts(self) -> dict[int, Verdict]:
        """The verdict of each sample."""
        return dict(sorted(self._found.items()))

    def _result(self) -> Sequence[Score]:
        found = self.verdicts
        return [
            _share("usable", {i: one.usable for i, one in found.items()}),
            *_thing_scores({i: (one.rank, one.neighbours) for i, one in found.items()}),
            _share("in_hand", {i: one.hand for i, one in found.items()}),
            _share("copied", {i: one.copy for i, one in found.items()}, higher_is_better=False),
            _share("thing_in_hand", {i: one.thing and one.hand for i, one in found.items()}),
        ]


def _thing_scores(found: Mapping[int, tuple[int, bool]]) -> list[Score]:
    """Scores of (rank, whether a neighbour means the thing) of each sample."""
    from cm3plugins.metrics.collecting import mean_score

    ranks = {index: float(rank) for index, (rank, _) in found.items()}
    return [
        _share("thing", {index: rank == 1 for index, (rank, _) in found.items()}),
        _share("thing_top5", {index: rank <= 5 for index, (rank, _) in found.items()}),
        mean_score("name_rank", ranks, higher_is_better=False),
        _share("neighbours", {index: means for index, (_, means) in found.items()}),
    ]


def _share(name: str, found: Mapping[int, bool], *, higher_is_better: bool = True) -> Score:
    from cm3plugins.metrics.collecting import mean_score

    values = {index: 100.0 * own for index, own in found.items()}
    return mean_score(name, values, higher_is_better=higher_is_better)


def _asked(target: Mapping[str, Any], metric: str) -> Asked:
    from cm3icons.evaluation.usable import Asked

    if not set(_TARGET) <= set(target):
        raise DataError(
            "a sample",
            "states no name, set and style of an icon",
            f"use a data set of icons, or remove the metric {metric}",
        )
    name, set_name, style, entry = (str(target[key]) for key in _TARGET)
    return Asked(name, set_name, style, entry)


def _judge(sets: tuple[str, ...]) -> IconJudge:
    from cm3icons.evaluation.usable import icon_judge

    return icon_judge(sets)
