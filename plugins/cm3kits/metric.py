"""Conformance kit of metrics.

class TestMine(MetricContract):
    config = MyMetricConfig()

    def known_answers(self):
        perfect = MetricBatch([0, 1], {"texts": ["a", "b"], "references": [["a"], ["b"]]})
        return [([perfect], {"exact": 1.0})]

The samples consist of the columns that the metric needs; a metric with stricter requirements for their
values (for `targets`, say) overrides `column`.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.metric import FLOAT_COLUMNS, Case, Metric, MetricBatch, Score
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import holds, refuses, same
from cm3kits._module_laws import Outputs

#: Operations whose results may overflow; `where(a > b, a - b, b - a)` overflows, too, but is right.
_ARITHMETIC = {"add", "subtract", "multiply", "power", "square", "negative"}
_SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "power": "**"}


class Watched(np.ndarray):
    """An array that repeats its 8-bit and 16-bit arithmetic in 64 bits, and notes differences."""

    notes: list[str]

    @classmethod
    def of(cls, pixels: PixelArray, notes: list[str]) -> Watched:
        """Wrap pixels; overflows are described in `notes`."""
        watched = pixels.copy().view(cls)
        watched.notes = notes
        return watched

    def __array_finalize__(self, made_of: Any) -> None:
        self.notes = getattr(made_of, "notes", [])

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any
    ) -> Any:
        plain = [_plain(one) for one in inputs]
        exact = None
        if ufunc.__name__ in _ARITHMETIC and method == "__call__":
            with np.errstate(all="ignore"):
                exact = ufunc(*[_wide(one) for one in plain])
            before = [np.array(one) for one in plain]
        if out is not None:
            options["out"] = tuple(_plain(one) for one in out)
        result: Any = getattr(ufunc, method)(*plain, **options)
        if exact is not None and _is_narrow(result):
            wrong = np.asarray(result != exact)
            if wrong.any():
                self.notes.append(_told(ufunc.__name__, before, result, wrong))
        if out is not None:
            return out[0]
        if isinstance(result, np.ndarray):
            seen: Any = result.view(Watched)
            seen.notes = self.notes
            return seen
        return result


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, Watched) else value


def _wide(value: Any) -> Any:
    return (
        value.astype(np.int64)
        if isinstance(value, np.ndarray) and value.dtype.kind in "ui"
        else value
    )


def _is_narrow(result: Any) -> bool:
    dtype = getattr(result, "dtype", None)
    return dtype is not None and dtype.kind in "ui" and dtype.itemsize <= 2


def _told(name: str, inputs: list[Any], result: Any, wrong: Any) -> str:
    """Describe the first wrong result: `3 - 5 = 254 in uint8`."""
    place = tuple(np.argwhere(wrong)[0])
    values = [np.broadcast_to(one, result.shape)[place].item() for one in inputs]
    sign = _SIGNS.get(name)
    told = f" {sign} ".join(map(str, values)) if sign else f"{name}({values[0]})"
    return f"{told} = {result[place]} in {result.dtype}"


_WORDS = ("a", "red", "green", "apple", "dog", "on", "the", "table", "2", "don't", "it's")
_SIDE, _DIMENSION = 24, 6

Samples = list[MetricBatch]


class MetricContract(ConfigLaws[Metric]):
    """Laws of a metric."""

    kind: ClassVar[str] = "metric"
    causes = ("too_few_samples_are_refused",)
    max_examples: ClassVar[int | None] = 8
    #: Tolerance of a score under other batches, order and shards, relative to it (to 1 if it is smaller).
    tolerance: ClassVar[float] = 1e-6

    def build(self, config: Any) -> Metric:
        """See `MetricConfig.build`."""
        metric: Metric = config.build()
        return metric

    def known_answers(self) -> Sequence[tuple[Sequence[MetricBatch], dict[str, float]]]:
        """Return batches, and some of the scores that they must give. Override it: the laws can't know what a
        metric measures."""
        return ()

    def column(self, name: str, num: int, rng: np.random.Generator) -> Sequence[Any]:
        """Return `num` values of a column in `COLUMNS`."""
        values: Sequence[Any] = _column(name, num, rng)
        return values

    def observe(self, component: Metric) -> Outputs:
        """Return scores of samples."""
        rng = np.random.default_rng(0)
        num = max(component.minimum + 9, 30)
        for group in component.needs:
            columns = {name: self.column(name, num, rng) for name in group}
            if "texts" in columns and "references" in columns:
                # random texts are never right: add a right one, and one that differs only in case
                right = [many[0] for many in columns["references"][:2]]
                columns["texts"] = [right[0], right[1].swapcase(), *columns["texts"][2:]]
            component.update(MetricBatch(list(range(num)), columns))
        scores = component.result()
        return {
            "minimum": component.minimum,
            "scores": {score.name: score.value for score in scores},
            "spreads": {score.name: score.spread for score in scores},
            "scores per sample": {score.name: dict(score.per_sample) for score in scores},
        }

    def declared(self, component: Metric) -> Iterator[tuple[str, bool, str, Any]]:
        """Samples of a new metric."""
        bounded = self.config is not None and type(self.config).bounded
        of_pictures = any("pictures" in group or "features" in group for group in component.needs)
        wanted = "True only for scores of pictures: those of real pictures are computed, too"
        yield "bounded of the config", not bounded or of_pictures, wanted, bounded
        number = self.make_again().num_samples
        yield "num_samples of a new metric", number == 0, "0", number

    def law_batch_size_does_not_matter(self, data: st.DataObject) -> None:
        """Scores of one batch equal those of its samples one by one, or in parts."""
        samples, rng = self._samples(data)
        whole = self._scores(samples)
        in_parts = self._scores(_parts(samples, rng))
        self._same(in_parts, whole, "scored the samples in one batch, and in several")
        few = [_take(batch, range(min(len(batch.indices), 40))) for batch in samples]
        if all(len(batch.indices) >= self.subject.minimum for batch in few):
            alone = [_take(batch, [place]) for batch in few for place in range(len(batch.indices))]
            did = "scored the samples in one batch, and one by one"
            self._same(self._scores(alone), self._scores(few), did)

    def law_order_does_not_matter(self, data: st.DataObject) -> None:
        """Scores are the same for any order of the samples; the columns are unchanged."""
        samples, rng = self._samples(data)
        before = copy.deepcopy(samples)
        whole = self._scores(samples)
        shuffled = [_take(batch, rng.permutation(len(batch.indices))) for batch in samples[::-1]]
        self._same(self._scores(shuffled), whole, "scored the samples, and in another order")
        for batch, old in zip(samples, before, strict=True):
            same(batch.columns, old.columns, "scored samples, and looked at the columns given")

    def law_merged_shards_equal_the_whole(self, data: st.DataObject) -> None:
        """Metrics of parts, merged in any order, give the scores of the whole; a metric merged into another is
        unchanged."""
        samples, rng = self._samples(data)
        whole = self._scores(samples)
        for _ in range(2):
            shards = [self.make_again() for _ in range(3)]
            for batch in _parts(samples, rng):
                shards[int(rng.integers(3))].update(batch)
            first, second = self.make_again(), self.make_again()
            for shard in rng.permutation(3):
                first.merge(shards[shard])
                second.merge(shards[shard])  # unchanged
            self._same(_named(first), whole, "scored all samples, and merged 3 metrics of parts")
            did = "scored all samples, and merged 3 metrics that had been merged before"
            self._same(_named(second), whole, did)

    def law_metrics_share_nothing(self, data: st.DataObject) -> None:
        """A metric's scores depend only on its own samples, even if another one sees the same numbers before or in
        between."""
        samples, rng = self._samples(data)
        others = [
            MetricBatch(
                batch.indices,
                {name: self.column(name, len(batch.indices), rng) for name in batch.columns},
            )
            for batch in samples
        ]
        elsewhere = [
            MetricBatch([index + 10_000 for index in batch.indices], batch.columns)
            for batch in others
        ]
        alone = [self._scores(one) for one in (samples, elsewhere)]
        first, second = self.make_again(), self.make_again()
        for one, other in zip(samples, others, strict=True):
            first.update(one)
            second.update(other)
        for metric, batches, expected in ((first, samples, alone[0]), (second, others, alone[1])):
            did = "gave two metrics other samples under the same numbers, by turns"
            self._same(_named(metric), expected, did)
            nums = {score.num for score in metric.result()}
            known = len({index for batch in batches for index in batch.indices})
            holds(max(nums) <= known, did, f"scores of at most {known} samples", max(nums))

    def law_too_few_samples_are_refused(self, data: st.DataObject) -> None:
        """`result` raises `DataError` with fewer than `minimum` samples in any group, and returns scores with
        `minimum`."""
        minimum = self.subject.minimum
        samples, _ = self._samples(data)
        enough = [_take(batch, range(minimum)) for batch in samples]
        holds(self._scores(enough), f"scored {minimum} samples, its minimum", "scores", "none")
        for place, batch in enumerate(enough):
            metric = self.make_again()
            for other in (*enough[:place], *enough[place + 1 :]):
                metric.update(other)
            if minimum > 1:
                metric.update(_take(batch, range(minimum - 1)))
            did = f"scored {minimum - 1} samples; its minimum is {minimum}"
            refuses(metric.result, did, DataError, match="needs")

    def law_a_sample_counts_once(self, data: st.DataObject) -> None:
        """Adding a sample again, by `update` or `merge`, raises an error and changes nothing."""
        samples, _ = self._samples(data)
        metric, other = self.make_again(), self.make_again()
        for batch in samples:
            metric.update(batch)
        other.update(samples[0])
        refuses(
            lambda: metric.update(_take(samples[0], [0])),
            "gave it a sample again",
            DataError,
            match="was there before",
        )
        refuses(
            lambda: metric.merge(other),
            "merged a metric of samples that it has",
            DataError,
            match="is in both metrics",
        )
        did = "scored samples, and again after samples that it refused"
        self._same(_named(metric), self._scores(samples), did)

    def law_a_result_changes_nothing(self, data: st.DataObject) -> None:
        """`result` may be called at any time, repeatedly, and changes no later score."""
        samples, _ = self._samples(data)
        metric, least = self.make_again(), self.subject.minimum
        for batch in samples:
            metric.update(_take(batch, range(least)))
        first = _named(metric)
        self._same(_named(metric), first, "called result() twice")
        for batch in samples:
            metric.update(_take(batch, range(least, len(batch.indices))))
        did = "scored samples at once, and with a result() in between"
        self._same(_named(metric), self._scores(samples), did)

    def law_a_sheet_is_a_picture(self, data: st.DataObject) -> None:
        """With `draws_sheet`, `sheet` returns uint8 [H, W, 3], and changes no score."""
        if not self.subject.draws_sheet:
            return
        samples, rng = self._samples(data)
        samples = [MetricBatch(list(range(len(one.indices))), one.columns) for one in samples]
        metric = self.make_again()
        for batch in samples:
            metric.update(batch)
        before = _named(metric)
        pictures = _column("pictures", 2 * len(samples[0].indices), rng)
        cases = [
            Case("a dog", drawn, [], real)
            for drawn, real in zip(pictures[::2], pictures[1::2], strict=True)
        ]
        sheet, did = metric.sheet(cases), f"called sheet() with {len(cases)} cases"
        good = sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3 and sheet.size
        holds(good, did, "uint8 [height, width, 3]", sheet)
        self._same(_named(metric), before, f"{did}, and compared scores before and after")

    def law_scores_are_named_and_counted(self, data: st.DataObject) -> None:
        """Scores always have the same valid names, count the samples, are finite, and equal the mean of their values per
        sample, if they have these."""
        samples, _ = self._samples(data)
        metric = self.make_again()
        for batch in samples:
            metric.update(batch)
        scores, known = metric.result(), {i for batch in samples for i in batch.indices}
        names = [score.name for score in scores]
        did = "looked at its scores"
        holds(len(set(names)) == len(names), did, "each name once", names)
        for name in names:
            good = re.fullmatch(r"[a-z0-9][a-z0-9_]*", name)
            holds(good, did, "names of lower-case letters, digits and '_'", name)
        other, _ = self._samples(data)
        same(list(self._scores(other)), names, "looked at the names of scores of other samples")
        for score in scores:
            at = f"{did}: {score.name}"
            holds(0 < score.num <= len(known), at, f"num in 1..{len(known)}", score.num)
            unknown = sorted(set(score.per_sample) - known)
            holds(not unknown, at, "per_sample of given samples", f"of {unknown} too")
            _check_finite(score, at)
            if score.per_sample:
                mean = float(np.mean(list(score.per_sample.values())))
                did_mean = f"{at}, and the mean of its per_sample"
                same(score.value, mean, did_mean, tolerance=1e-6)

    def law_simple_samples_have_finite_scores(self) -> None:
        """Right answers, equal pictures and pictures of one colour have finite scores, or raise an error with a
        reason."""
        for name in ("right answers", "pictures of one colour"):
            metric = self.make_again()
            num = max(metric.minimum, 4)
            rng = np.random.default_rng(0)
            try:
                for group in metric.needs:
                    columns = {key: self.column(key, num, rng) for key in group}
                    metric.update(MetricBatch(list(range(num)), _simple(columns, name)))
                scores = metric._result()
            except DataError:
                continue
            for score in scores:
                _check_finite(
                    score,
                    f"scored {num} samples that are {name}: {score.name}",
                    next_step="handle divisions by zero and logarithms of zero, as PSNR does for equal "
                    "pictures, or raise a DataError that says what can't be scored",
                )

    def law_what_is_no_number_is_refused(self, data: st.DataObject) -> None:
        """NaN and infinity in a column raise `DataError`; a mean never skips them."""
        samples, _ = self._samples(data)
        for batch in samples:
            for name in sorted(FLOAT_COLUMNS.intersection(batch.columns)):
                for bad in (np.nan, np.inf):
                    values = copy.deepcopy(list(batch.columns[name]))
                    values[0] = np.asarray(values[0], float).copy()
                    values[0][...] = bad
                    values[0] = values[0].tolist() if values[0].ndim < 2 else values[0]
                    columns = {**batch.columns, name: values}

                    spoiled = MetricBatch(batch.indices, columns)
                    given = [spoiled if other is batch else other for other in samples]
                    refuses(
                        lambda given=given: self._scores(given),  # type: ignore[misc]  # a default
                        f"scored samples of which the first has {bad} as {name}",
                        DataError,
                        next_step="raise a DataError, or leave it to Metric.update; np.nanmean hides samples "
                        "that failed",
                    )

    def law_pixels_do_not_overflow(self) -> None:
        """Arithmetic with pixels does not use uint8, where 0 - 1 is 255."""
        groups = [
            group for group in self.subject.needs if {"pictures", "reference_pictures"} & {*group}
        ]
        if not groups:
            return
        num = max(self.subject.minimum, 3)
        rng = np.random.default_rng(0)
        batches = [
            MetricBatch(list(range(num)), {name: self.column(name, num, rng) for name in group})
            for group in self.subject.needs
        ]
        notes: list[str] = []
        watched: Samples = []
        for batch in batches:
            columns = dict(batch.columns)
            for name in ("pictures", "reference_pictures"):
                if name in columns:
                    columns[name] = [Watched.of(one, notes) for one in columns[name]]
            watched.append(MetricBatch(batch.indices, columns))
        self._scores(watched)
        if not notes:
            return
        wide = [
            MetricBatch(
                batch.indices,
                {
                    name: [one.astype(np.int64) for one in values]
                    if name in ("pictures", "reference_pictures")
                    else values
                    for name, values in batch.columns.items()
                },
            )
            for batch in batches
        ]
        try:
            expected = self._scores(wide)
        except Exception:
            expected = {}  # it supports no other dtype: overflows count
        found = self._scores(batches)
        holds(
            expected and all(abs(found[name] - expected[name]) < 1e-9 for name in found),
            "scored pictures, and watched the arithmetic with their pixels",
            "exact differences, sums and products",
            notes[0],
            next_step="convert pixels first: pictures.astype(np.float32)",
        )

    def law_near_pictures_score_no_worse_than_opposite_ones(self) -> None:
        """Pictures that differ from their references by 8 levels score no worse than negatives: a difference of 255
        is not treated as 1."""
        both = {"pictures", "reference_pictures"}
        if not any(both <= {*group} for group in self.subject.needs):
            return
        num = max(self.subject.minimum, 4)
        rng = np.random.default_rng(0)
        blocks = rng.integers(0, 2, (num, 6, 6, 1), np.uint8) * np.uint8(255)
        blocks[0], blocks[1] = 0, 255
        blocks[0, :3], blocks[1, :3] = 255, 0
        height, width = self.column("pictures", 1, rng)[0].shape[
            :2
        ]  # a network may need large ones
        times = -(-max(height, width) // 6)
        large = blocks.repeat(times, axis=1).repeat(times, axis=2).repeat(3, axis=3)
        reference = large[:, :height, :width]
        near = np.where(reference > 0, 247, 8).astype(np.uint8)
        scores = []
        for pictures in (near, 255 - reference):
            metric = self.make_again()
            for group in metric.needs:
                columns = {name: self.column(name, num, rng) for name in group}
                if both <= {*group}:
                    columns |= {"pictures": list(pictures), "reference_pictures": list(reference)}
                metric.update(MetricBatch(list(range(num)), columns))
            scores.append({score.name: score for score in metric.result()})
        for name, score in scores[0].items():
            sign = 1 if score.higher_is_better else -1
            opposite = scores[1][name].value
            holds(
                sign * score.value >= sign * opposite - self.tolerance * max(1.0, abs(opposite)),
                f"scored pictures of 8 and 247 against references of 0 and 255, and negatives: {name}",
                f"no worse than the negatives' {opposite:.6g}",
                f"{score.value:.6g}, where {'more' if score.higher_is_better else 'less'} is better",
                next_step="convert pixels before subtracting: pictures.astype(np.float32)",
            )

    def law_the_protocol_is_json(self) -> None:
        """The config's protocol is JSON, with its version and every key, and always the same."""
        if self.config is None:
            return
        protocol = self.config.protocol()
        did = "looked at the config's protocol()"
        read = json.loads(json.dumps(protocol))
        holds(read == protocol, f"{did}, written as JSON and read", f"{protocol}", f"{read}")
        same(protocol.get("version"), type(self.config).version, f"{did}: its version")
        missing = sorted(set(vars(self.config)) - set(protocol))
        holds(not missing, did, "every key of the config", f"none of {', '.join(missing)}")
        self.make_again()
        same(self.config.protocol(), protocol, f"{did} before and after building a metric")

    def law_known_answers_are_given(self) -> None:
        """The metric gives the scores of `known_answers`."""
        for place, (batches, answers) in enumerate(self.known_answers()):
            found = self._scores(list(batches))
            for name, value in answers.items():
                did = f"scored the batches of known_answers()[{place}]: {name}"
                holds(name in found, did, "a score of this name", f"only {', '.join(found)}")
                same(found[name], value, did, tolerance=1e-6)

    def law_other_columns_are_refused(self) -> None:
        """A batch without the required columns raises an error."""
        refuses(
            lambda: self.subject.update(MetricBatch([0], {})),
            "gave it a sample without columns",
            DataError,
            match="needs",
        )

    def _samples(self, data: st.DataObject) -> tuple[Samples, np.random.Generator]:
        """Draw a batch for each group, with a few more samples than needed."""
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

    def _same(self, got: dict[str, float], expected: dict[str, float], did: str) -> None:
        same(list(got), list(expected), f"{did}: names of scores")
        for name, value in expected.items():
            same(got[name], value, f"{did}: {name}", tolerance=self.tolerance)


def _check_finite(score: Score, did: str, next_step: str = "") -> None:
    """Raise `LawBroken` unless all numbers of a score are finite."""
    numbers = {"value": score.value} | {f"per_sample[{i}]": v for i, v in score.per_sample.items()}
    if score.spread is not None:
        numbers["spread"] = score.spread
    for name, number in numbers.items():
        holds(math.isfinite(number), did, "finite numbers", number, where=name, next_step=next_step)


def _simple(columns: dict[str, Any], sort: str) -> dict[str, Any]:
    """Return the columns, changed to right answers or to pictures of one colour."""
    columns = dict(columns)
    pictures, references = (columns.get(f"{name}pictures") for name in ("", "reference_"))
    if sort == "right answers":
        if pictures is not None and references is not None:
            columns["pictures"] = [one.copy() for one in references]
        for name in ("reference_features", "text_features"):
            if "features" in columns and name in columns:
                columns["features"] = np.array(columns[name], copy=True)
        if "texts" in columns and "references" in columns:
            columns["texts"] = [many[0] for many in columns["references"]]
        if "choices" in columns and "answers" in columns:
            for scores, right in zip(columns["choices"], columns["answers"], strict=True):
                scores[right] = max(scores) + 1.0
        return columns
    for name, many in (("pictures", pictures), ("reference_pictures", references)):
        if many is not None:
            columns[name] = [
                np.full_like(one, (0, 255, 120, 60)[place % 4]) for place, one in enumerate(many)
            ]
    return columns


def _named(metric: Metric) -> dict[str, float]:
    return {score.name: score.value for score in metric.result()}


def _take(batch: MetricBatch, places: Any) -> MetricBatch:
    """Return some samples of a batch."""
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
    """Split the samples in parts of random sizes."""
    parts = []
    for batch in samples:
        num = len(batch.indices)
        cuts = [0, *sorted(rng.integers(0, num + 1, 3).tolist()), num]
        parts += [_take(batch, range(*cut)) for cut in itertools.pairwise(cuts)]
    return parts


def _column(name: str, num: int, rng: np.random.Generator) -> Any:
    """Draw random values of a column."""

    def sentence() -> str:
        return " ".join(rng.choice(_WORDS, int(rng.integers(4, 9))))

    if name in ("features", "reference_features", "text_features"):
        return rng.normal(1, 1, (num, _DIMENSION)).astype(np.float32)
    if name == "candidate_features":
        return [rng.normal(1, 1, (12, _DIMENSION)).astype(np.float32) for _ in range(num)]
    if name in ("pictures", "reference_pictures"):
        return [rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8) for _ in range(num)]
    if name == "documents":
        return [_column("pictures", place % 3, rng) for place in range(num)]
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
    if name.endswith("_nearness"):
        return rng.uniform(0, 1, num).tolist()
    if name == "codes":
        return [rng.integers(0, 16, 9) for _ in range(num)]
    assert name == "targets"
    return [{} for _ in range(num)]
