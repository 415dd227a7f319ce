"""The metrics' kit: a right metric passes, and each law fails for one that is wrong in just that
way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from cm3core.errors import DataError
from cm3core.interfaces.metric import Case, Group, Metric, MetricBatch, MetricConfig, Score
from cm3kits.metric import MetricContract
from kit_mutants import assert_covers, assert_law_fails, cases
from planted_mistakes import ErrorConfig, TopicConfig, planted


class Length(Metric):
    """Right: the mean number of words."""

    needs: ClassVar[tuple[Group, ...]] = (("texts",),)
    minimum = 2

    def __init__(self) -> None:
        self.own: dict[int, float] = {}

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        for index, text in zip(indices, columns["texts"], strict=True):
            self.own[index] = len(text.split())

    def _merge(self, other: Length) -> None:
        self.own |= other.own

    def _result(self) -> Sequence[Score]:
        mean = float(np.mean(list(self.own.values())))
        return [Score("words", mean, len(self.own), False, per_sample=dict(self.own))]


@dataclass(kw_only=True)
class LengthConfig(MetricConfig):
    def build(self) -> Length:
        return Length()


TWO = MetricBatch([3, 4], {"texts": ["a b", "a b c d"]})


class TestRight(MetricContract):
    config = LengthConfig()

    def known_answers(self) -> Any:
        return [([TWO], {"words": 3.0})]


class MeanOfBatches(Length):
    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        super()._update(group, indices, columns)
        self.means.append(float(np.mean([len(text.split()) ** 2 for text in columns["texts"]])))

    def _result(self) -> Sequence[Score]:
        return [Score("words", float(np.mean(self.means)), len(self.own), False)]


class FirstMatters(Length):
    def _result(self) -> Sequence[Score]:
        return [Score("words", next(iter(self.own.values())), len(self.own), False)]


class DrawsInFloats(Length):
    draws_sheet: ClassVar[bool] = True

    def sheet(self, cases: Sequence[Case]) -> Any:
        return np.concatenate([case.drawn for case in cases]) / 255


class ForgetsWhatItDrew(Length):
    draws_sheet: ClassVar[bool] = True

    def sheet(self, cases: Sequence[Case]) -> Any:
        self.own = {0: 1.0}
        return np.concatenate([case.drawn for case in cases])


class Clears(Length):
    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        super()._update(group, indices, columns)
        columns["texts"][0] += " more"


class ForgetsOthers(Length):
    def _merge(self, other: Length) -> None:
        pass


class EatsOthers(Length):
    def _merge(self, other: Length) -> None:
        self.own |= other.own
        other.own.clear()


class TakesOne(Length):
    def result(self) -> tuple[Score, ...]:
        return tuple(self._result()) if self.own else (Score("words", 0.0, 1, False),)


class CountsTwice(Length):
    def update(self, batch: MetricBatch) -> None:
        self._update(self.needs[0], list(batch.indices), batch.columns)


class Ends(Length):
    def _result(self) -> Sequence[Score]:
        scores = super()._result()
        self.own = dict.fromkeys(self.own, 0.0)
        return scores


class NamesItsData(Length):
    def _result(self) -> Sequence[Score]:
        return [replace(super()._result()[0], name=f"words{sorted(self.own)}")]


class NotTheMean(Length):
    def _result(self) -> Sequence[Score]:
        return [replace(super()._result()[0], value=-1.0)]


class Ignores(Length):
    def update(self, batch: MetricBatch) -> None:
        if batch.columns:
            super().update(batch)


@dataclass(kw_only=True)
class KeepsAKey(LengthConfig):
    separator: str = " "

    def protocol(self) -> dict[str, Any]:
        return {"version": 1}


@dataclass(kw_only=True)
class NotJSON(LengthConfig):
    def protocol(self) -> dict[str, Any]:
        return {"version": 1, "letters": ("a", "b")}


class Wrong(Length):
    def _result(self) -> Sequence[Score]:
        return [Score("words", 7.0, len(self.own), False)]


MUTANTS: dict[str, list[Any]] = {
    "a_result_changes_nothing": [Ends],
    "a_sample_counts_once": [CountsTwice],
    "batch_size_does_not_matter": [MeanOfBatches],
    "a_sheet_is_a_picture": [DrawsInFloats, ForgetsWhatItDrew],
    "known_answers_are_given": [Wrong],
    "merged_shards_equal_the_whole": [ForgetsOthers, EatsOthers],
    "order_does_not_matter": [FirstMatters, Clears],
    "metrics_share_nothing": [
        planted(ErrorConfig, "cached by index"),
        planted(ErrorConfig, "values on the class"),
    ],
    "near_pictures_score_no_worse_than_opposite_ones": [
        planted(ErrorConfig, "overflow of stacked pictures"),
        planted(ErrorConfig, "wrong direction"),
    ],
    "other_columns_are_refused": [Ignores],
    "pixels_do_not_overflow": [
        planted(ErrorConfig, "overflow of uint8"),
        planted(ErrorConfig, "overflow of squares"),
    ],
    "scores_are_named_and_counted": [NamesItsData, NotTheMean],
    "simple_samples_have_finite_scores": [
        planted(ErrorConfig, "infinite for equal pictures"),
        planted(ErrorConfig, "NaN of flat pictures"),
    ],
    "the_protocol_is_json": [KeepsAKey, NotJSON],
    "too_few_samples_are_refused": [TakesOne],
    "what_is_no_number_is_refused": [planted(TopicConfig, "leaves NaN out")],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_metric_fails(law: str, wrong: Any) -> None:
    attributes: dict[str, Any] = {"known_answers": lambda self: [([TWO], {"words": 3.0})]}
    if issubclass(wrong, (ErrorConfig, TopicConfig)):
        attributes = {"config": wrong()}
    elif issubclass(wrong, MetricConfig):
        attributes["config"] = wrong()
    else:
        attributes["make"] = lambda self: wrong()
    assert_law_fails(MetricContract, law, attributes)


def test_every_law_has_a_mutant() -> None:
    assert_covers(MetricContract, MUTANTS)


@pytest.mark.parametrize(
    ("indices", "columns", "message"),
    [
        ([0, 0], {"texts": ["a", "b"]}, "samples: contain a number twice"),
        ([0], {"text": ["a"]}, "column 'text': is unknown\n  next: did you mean 'texts'?"),
        ([0], {"texts": ["a", "b"]}, "column 'texts': has 2 values for 1 samples"),
    ],
)
def test_a_wrong_batch_is_refused(
    indices: list[int], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        MetricBatch(indices, columns)
    assert str(caught.value).startswith(message)


def test_what_a_metric_refuses() -> None:
    metric = Length()
    metric.update(MetricBatch([0], {"texts": ["a"]}))
    for wrong, message in (
        (lambda: metric.update(MetricBatch([0], {"texts": ["a"]})), "sample 0: was there before"),
        (
            lambda: metric.update(MetricBatch([1], {"prompts": ["a"]})),
            "needs texts, but the batch has",
        ),
        (metric.result, "Length: has 1 samples of texts, but needs 2 or more"),
        (lambda: metric.merge(Clears()), "can't be merged with a Clears"),
    ):
        with pytest.raises(DataError, match=message):
            wrong()


class Exact(Metric):
    """Right: the share of texts that are their reference."""

    needs: ClassVar[tuple[Group, ...]] = (("texts", "references"),)

    def __init__(self, ignore_case: bool) -> None:
        self.ignore_case, self.own = ignore_case, dict[int, float]()

    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        rows = zip(indices, columns["texts"], columns["references"], strict=True)
        for index, text, references in rows:
            forms = {self.form(one) for one in references}
            self.own[index] = float(self.form(text) in forms)

    def form(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text

    def _merge(self, other: Exact) -> None:
        self.own |= other.own

    def _result(self) -> Sequence[Score]:
        mean = float(np.mean([self.own[index] for index in sorted(self.own)]))
        return [Score("exact", mean, len(self.own), True, per_sample=dict(self.own))]


@dataclass(kw_only=True)
class ExactConfig(MetricConfig):
    """Args: ignore_case: capitals count as small letters."""

    ignore_case: bool = True

    def build(self) -> Exact:
        return Exact(self.ignore_case)


def test_a_key_that_counts_for_right_texts_alone_counts(recwarn: pytest.WarningsRecorder) -> None:
    """Random texts are never right, so that none of them tells what such a key does."""
    contract: Any = MetricContract.for_config(ExactConfig())()
    contract.test_every_key_counts()
    assert not recwarn.list
