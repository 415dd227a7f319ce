"""Conformance kit of metrics.

class TestMine(MetricContract):
    config = MyMetricConfig()

    def known_answers(self):
        perfect = MetricBatch([0, 1], {"texts": ["a", "b"], "references": [["a"], ["b"]]})
        return [([perfect], {"exact": 1.0})]

The samples are made of the columns that the metric needs; a metric that demands more of their
values (of `targets`, say) overrides `column`.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3core.interfaces.metric import Metric, MetricBatch
from cm3core.testing._laws import Contract

_WORDS = ("a", "red", "green", "apple", "dog", "on", "the", "table", "2", "don't", "it's")
_SIDE, _DIMENSION = 24, 6

Samples = list[MetricBatch]


class MetricContract(Contract[Metric]):
    """Laws of a metric."""

    kind: ClassVar[str] = "metric"
    max_examples: ClassVar[int | None] = 8
    #: How far a score may move with batches, order and shards, relative to it (to 1 if it is smaller).
    tolerance: ClassVar[float] = 1e-6

    def build(self, config: Any) -> Metric:
        """See `MetricConfig.build`."""
        metric: Metric = config.build()
        return metric

    def known_answers(self) -> Sequence[tuple[Sequence[MetricBatch], dict[str, float]]]:
        """Batches, and some of the scores that they must give. Override it: the laws can't know what
        a metric measures."""
        return ()

    def column(self, name: str, num: int, rng: np.random.Generator) -> Sequence[Any]:
        """`num` values of a column of `COLUMNS`."""
        values: Sequence[Any] = _column(name, num, rng)
        return values

    def law_batch_size_does_not_matter(self, data: st.DataObject) -> None:
        """Scores of one batch equal those of its samples one by one, or in parts."""
        samples, rng = self._samples(data)
        whole = self._scores(samples)
        self._same(whole, self._scores(_parts(samples, rng)))
        few = [_take(batch, range(min(len(batch.indices), 40))) for batch in samples]
        if all(len(batch.indices) >= self.subject.minimum for batch in few):
            alone = [_take(batch, [place]) for batch in few for place in range(len(batch.indices))]
            self._same(self._scores(few), self._scores(alone))

    def law_order_does_not_matter(self, data: st.DataObject) -> None:
        """Scores are the same in any order of the samples; the columns are unchanged."""
        samples, rng = self._samples(data)
        before = copy.deepcopy(samples)
        whole = self._scores(samples)
        shuffled = [_take(batch, rng.permutation(len(batch.indices))) for batch in samples[::-1]]
        self._same(whole, self._scores(shuffled))
        for batch, old in zip(samples, before, strict=True):
            assert json.dumps(batch.columns, default=np.ndarray.tolist) == json.dumps(
                old.columns, default=np.ndarray.tolist
            )

    def law_merged_shards_equal_the_whole(self, data: st.DataObject) -> None:
        """Metrics of parts, merged in any order, give the scores of the whole; what is merged into
        another is unchanged."""
        samples, rng = self._samples(data)
        whole = self._scores(samples)
        for _ in range(2):
            shards = [self.make_again() for _ in range(3)]
            for batch in _parts(samples, rng):
                shards[int(rng.integers(3))].update(batch)
            first, second = self.make_again(), self.make_again()
            for shard in rng.permutation(3):
                first.merge(shards[shard])
                second.merge(shards[shard])  # as it was
            self._same(whole, _named(first))
            self._same(whole, _named(second))

    def law_too_few_samples_are_refused(self, data: st.DataObject) -> None:
        """`result` raises `DataError` with less than `minimum` samples of any group, and gives scores
        with so many."""
        minimum = self.subject.minimum
        samples, _ = self._samples(data)
        enough = [_take(batch, range(minimum)) for batch in samples]
        assert self._scores(enough)
        for place, batch in enumerate(enough):
            metric = self.make_again()
            for other in (*enough[:place], *enough[place + 1 :]):
                metric.update(other)
            if minimum > 1:
                metric.update(_take(batch, range(minimum - 1)))
            with pytest.raises(DataError, match="needs"):
                metric.result()

    def law_a_sample_counts_once(self, data: st.DataObject) -> None:
        """A sample given again, by `update` or by `merge`, is refused and changes nothing."""
        samples, _ = self._samples(data)
        metric, other = self.make_again(), self.make_again()
        for batch in samples:
            metric.update(batch)
        other.update(samples[0])
        with pytest.raises(DataError, match="was there before"):
            metric.update(_take(samples[0], [0]))
        with pytest.raises(DataError, match="is in both metrics"):
            metric.merge(other)
        self._same(self._scores(samples), _named(metric))

    def law_a_result_changes_nothing(self, data: st.DataObject) -> None:
        """`result` may be called in between, and again, and changes no later score."""
        samples, _ = self._samples(data)
        metric, least = self.make_again(), self.subject.minimum
        for batch in samples:
            metric.update(_take(batch, range(least)))
        first = _named(metric)
        self._same(first, _named(metric))
        for batch in samples:
            metric.update(_take(batch, range(least, len(batch.indices))))
        self._same(self._scores(samples), _named(metric))

    def law_scores_are_named_and_counted(self, data: st.DataObject) -> None:
        """Scores have the same valid names whatever the samples, count these, and are the mean of
        their values per sample where they have them."""
        samples, _ = self._samples(data)
        metric = self.make_again()
        for batch in samples:
            metric.update(batch)
        scores, known = metric.result(), {i for batch in samples for i in batch.indices}
        names = [score.name for score in scores]
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9_]*", name) for name in names), names
        other, _ = self._samples(data)
        assert list(self._scores(other)) == names
        for score in scores:
            assert 0 < score.num <= len(known)
            assert set(score.per_sample) <= known
            if score.per_sample:
                mean = float(np.mean(list(score.per_sample.values())))
                assert mean == pytest.approx(score.value, abs=1e-6, rel=1e-6)

    def law_the_protocol_is_json(self) -> None:
        """The config's protocol is JSON, with its version and every key, and the same each time."""
        if self.config is None:
            return
        protocol = self.config.protocol()
        assert json.loads(json.dumps(protocol)) == protocol
        assert protocol["version"] == type(self.config).version
        assert set(vars(self.config)) <= set(protocol)
        self.make_again()
        assert self.config.protocol() == protocol

    def law_known_answers_are_given(self) -> None:
        """The scores of `known_answers`."""
        for batches, answers in self.known_answers():
            found = self._scores(list(batches))
            for name, value in answers.items():
                assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name

    def law_other_columns_are_refused(self) -> None:
        """A batch without the columns that it needs is an error."""
        with pytest.raises(DataError, match="needs"):
            self.subject.update(MetricBatch([0], {}))

    def _samples(self, data: st.DataObject) -> tuple[Samples, np.random.Generator]:
        """A batch for each group, of some more samples than needed."""
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
        num = self.subject.minimum + data.draw(st.integers(1, 9), label="more samples")
        indices = [int(index) for index in rng.permutation(3 * num)[:num]]
        return [
            MetricBatch(indices, {name: self.column(name, num, rng) for name in group})
            for group in self.subject.needs
        ], rng

    def _scores(self, batches: Samples) -> dict[str, float]:
        metric = self.make_again()
        for batch in batches:
            metric.update(batch)
        return _named(metric)

    def _same(self, one: dict[str, float], other: dict[str, float]) -> None:
        assert list(one) == list(other)
        for name, value in one.items():
            assert abs(other[name] - value) <= self.tolerance * max(1.0, abs(value)), name


def _named(metric: Metric) -> dict[str, float]:
    return {score.name: score.value for score in metric.result()}


def _take(batch: MetricBatch, places: Any) -> MetricBatch:
    """Some samples of a batch."""
    places = [int(place) for place in places]
    return MetricBatch(
        [batch.indices[place] for place in places],
        {
            name: values[places]
            if isinstance(values, np.ndarray)
            else [values[place] for place in places]
            for name, values in batch.columns.items()
        },
    )


def _parts(samples: Samples, rng: np.random.Generator) -> Samples:
    """The samples in parts of random sizes."""
    parts = []
    for batch in samples:
        num = len(batch.indices)
        cuts = [0, *sorted(rng.integers(0, num + 1, 3).tolist()), num]
        parts += [_take(batch, range(*cut)) for cut in itertools.pairwise(cuts)]
    return parts


def _column(name: str, num: int, rng: np.random.Generator) -> Any:
    """Random values of a column."""

    def sentence() -> str:
        return " ".join(rng.choice(_WORDS, int(rng.integers(4, 9))))

    if name in ("features", "reference_features", "text_features"):
        return rng.normal(1, 1, (num, _DIMENSION)).astype(np.float32)
    if name == "candidate_features":
        return [rng.normal(1, 1, (12, _DIMENSION)).astype(np.float32) for _ in range(num)]
    if name in ("pictures", "reference_pictures"):
        return [rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8) for _ in range(num)]
    if name == "prompts":
        return [f"{sentence()} {place}" for place in range(num)]
    if name == "texts":
        return [sentence() for _ in range(num)]
    if name == "references":
        return [[sentence() for _ in range(10)] for _ in range(num)]
    if name == "choices":
        return [rng.normal(size=4).tolist() for _ in range(num)]
    if name == "answers":
        return rng.integers(0, 4, num).tolist()
    if name.endswith("_nats"):
        return rng.uniform(1, 9, num).tolist()
    if name.endswith("_tokens"):
        return rng.integers(1, 9, num).tolist()
    if name == "codes":
        return [rng.integers(0, 16, 9) for _ in range(num)]
    assert name == "targets"
    return [{} for _ in range(num)]
