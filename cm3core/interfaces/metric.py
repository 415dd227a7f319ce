"""Kind `metric`: samples of an evaluation -> one or a few scores.

A metric collects batches of samples (`update`), may be merged with metrics of other
samples (`merge`), and returns its scores at the end (`result`). Scores do not depend on the order of samples or the
size of batches, so an evaluation can be interrupted, resumed and divided.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np

from cm3core.document import PixelArray
from cm3core.errors import DataError, close_match
from cm3core.interfaces.component import ComponentConfig, broken, shown

#: Possible columns of a batch, with one value per sample. Metrics name those they need.
COLUMNS: Mapping[str, str] = {
    "features": "float32 [D]: an extractor's features of the picture",
    "reference_features": "float32 [D]: the same of a reference picture",
    "text_features": "float32 [D]: the same of the prompt",
    "candidate_features": "float32 [C, D]: the same of C real pictures, the right one first",
    "pictures": "uint8 [H, W, 3]: the picture",
    "reference_pictures": "uint8 [H, W, 3]: the reference picture",
    "documents": "list of uint8 [H, W, 3]: pictures of the documents before the prompt",
    "training_nearness": "float: nearness of the picture to the nearest one of the training data",
    "prompts": "str: what the picture should show",
    "texts": "str: the text that a model wrote",
    "references": "list of str: texts that people wrote",
    "choices": "list of float: a score of each possible answer, higher is better",
    "answers": "int: position of the right answer",
    "image_nats": "float: -log p of the image tokens",
    "retrieved_image_nats": "float: the same, after the documents that the model retrieves for the text",
    "image_tokens": "int: their number",
    "text_nats": "float: -log p of the text tokens",
    "text_tokens": "int: their number",
    "codes": "int [C]: the image codes of the picture",
    "targets": "dict: what the picture should show, in the task's own terms",
}
#: Columns of floats, which must be finite.
FLOAT_COLUMNS = frozenset(
    name for name, about in COLUMNS.items() if about.startswith(("float", "list of float"))
)
#: Columns that one `update` needs together.
Group: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class MetricBatch:
    """Some samples.

    Args:
        indices: the samples' numbers, unique within the whole evaluation.
        columns: name in `COLUMNS` -> a value for each sample, as a sequence or an array.

    Raises:
        DataError: an unknown column, a column of another length, or a duplicate number.
    """

    indices: Sequence[int]
    columns: Mapping[str, Sequence[Any]]

    def __post_init__(self) -> None:
        if len(set(self.indices)) != len(self.indices):
            raise DataError("samples", "contain a number twice", "give each sample once")
        for name, values in self.columns.items():
            if name not in COLUMNS:
                raise DataError(f"column {name!r}", "is unknown", close_match(name, COLUMNS))
            if len(values) != len(self.indices):
                raise DataError(
                    f"column {name!r}",
                    f"has {len(values)} values for {len(self.indices)} samples",
                    "give one for each",
                )


@dataclass(frozen=True)
class Score:
    """The value of a metric.

    Args:
        name: lower-case letters, digits, `_`; unique among the metric's scores.
        value: the value.
        num: number of samples.
        higher_is_better: whether higher values are better.
        spread: its standard error or its spread over subsets, as the metric's docstring states; None
            if there is none.
        per_sample: sample -> its own value, if the score is a mean of these.
        note: a caveat in a few words, printed beside the value, for samples that suffice for a value
            but not for a conclusion; metrics without a value are refused.
    """

    name: str
    value: float
    num: int
    higher_is_better: bool
    spread: float | None = None
    per_sample: Mapping[int, float] = field(default_factory=dict, repr=False)
    note: str = ""


@dataclass(kw_only=True)
class MetricConfig(ComponentConfig):
    """Base of metrics' configs. Every field is part of a score's protocol."""

    kind: ClassVar[str] = "metric"
    #: Increased whenever equal samples may get other scores; part of the protocol.
    version: ClassVar[int] = 1
    #: Whether an evaluation also computes the score of the real pictures, of their reconstructions by the image
    #: tokenizer, and of copies of the first prepended document.
    bounded: ClassVar[bool] = False

    def build(self) -> Metric:
        """Return the metric, without samples."""
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """Everything that scores depend on: the version and all keys, as JSON values."""
        return {"version": self.version} | {
            item.name: getattr(self, item.name) for item in fields(self)
        }


@dataclass(frozen=True)
class Case:
    """A sample as a sheet shows it.

    Args:
        prompt: its prompt.
        drawn: the result.
        documents: pictures of the documents before the prompt.
        real: the reference picture.
    """

    prompt: str
    drawn: PixelArray
    documents: Sequence[PixelArray]
    real: PixelArray


class Metric(ABC):
    """Collects samples and gives scores."""

    #: Whether `sheet` draws the samples.
    draws_sheet: ClassVar[bool] = False

    #: The columns it needs, in groups: an `update` uses each group whose columns are all in the batch. Pictures
    #: and reference pictures that may differ in number are two groups.
    needs: ClassVar[tuple[Group, ...]]

    @property
    def minimum(self) -> int:
        """Minimum number of samples of each group."""
        return 1

    @abstractmethod
    def _update(self, group: Group, indices: Sequence[int], columns: Mapping[str, Any]) -> None:
        """Collect samples.

        Args:
            group: one of `needs`.
            indices: of samples that this group has not had yet.
            columns: the group's columns, each with a value for each sample.
        """

    @abstractmethod
    def _merge(self, other: Any) -> None:
        """Add the samples of an equal metric. `other` is not changed."""

    @abstractmethod
    def _result(self) -> Sequence[Score]:
        """Return the scores. Must not change the collected data: more may follow."""

    def update(self, batch: MetricBatch) -> None:
        """Collect the samples of a batch.

        Raises:
            DataError: the batch has no group of columns that the metric needs, a sample is repeated, or a number
                is NaN or infinite.
        """
        groups = [group for group in self.needs if set(group) <= set(batch.columns)]
        if not groups:
            wanted = " or ".join(" with ".join(group) for group in self.needs)
            raise DataError(
                type(self).__name__,
                f"needs {wanted}, but the batch has {', '.join(batch.columns) or 'no columns'}",
                "give these columns",
            )
        for group in groups:
            again = self._seen[group].intersection(batch.indices)
            if again:
                raise DataError(f"sample {min(again)}", "was there before", "give each sample once")
        for name in sorted(FLOAT_COLUMNS.intersection(name for group in groups for name in group)):
            _check_finite(name, batch)
        for group in groups:
            self._seen[group].update(batch.indices)
            if len(batch.indices):
                own = {name: batch.columns[name] for name in group}
                self._update(group, list(batch.indices), own)

    def merge(self, other: Metric) -> None:
        """Add the samples of an equal metric.

        Raises:
            DataError: another class, or a sample that both have.
        """
        if type(other) is not type(self):
            raise DataError(
                type(self).__name__,
                f"can't be merged with a {type(other).__name__}",
                "merge metrics of equal configs",
            )
        for group in self.needs:
            both = self._seen[group] & other._seen[group]
            if both:
                raise DataError(
                    f"sample {min(both)}", "is in both metrics", "give each sample to one of them"
                )
        for group in self.needs:
            self._seen[group] |= other._seen[group]
        self._merge(other)

    def sheet(self, cases: Sequence[Case]) -> PixelArray:
        """Return a picture of all samples with what the metric says of each, uint8 [H, W, 3]; only if `draws_sheet`."""
        raise NotImplementedError

    def result(self) -> tuple[Score, ...]:
        """Return the scores of all samples so far.

        Raises:
            DataError: too few samples.
        """
        for group in self.needs:
            if len(self._seen[group]) < self.minimum:
                raise DataError(
                    type(self).__name__,
                    f"has {len(self._seen[group])} samples of {' with '.join(group)}, but "
                    f"needs {self.minimum} or more",
                    "evaluate more samples",
                )
        scores = self._result()
        if not scores or not all(isinstance(score, Score) for score in scores):
            raise broken(self, "scores_are_finite", f"it returned {shown(scores)}, not scores")
        for score in scores:
            if not math.isfinite(score.value):
                raise DataError(
                    f"score {score.name!r}",
                    f"is {score.value}",
                    "look for samples without content, such as pictures of one colour",
                )
        return tuple(scores)

    @property
    def num_samples(self) -> int:
        """Number of samples of the largest group."""
        return max(len(seen) for seen in self._seen.values())

    @cached_property
    def _seen(self) -> dict[Group, set[int]]:
        return {group: set() for group in self.needs}


def _check_finite(name: str, batch: MetricBatch) -> None:
    """Raise `DataError` for NaN or infinity in a column, which would spoil a mean."""
    for index, value in zip(batch.indices, batch.columns[name], strict=True):
        array = np.asarray(value, dtype=np.float64)
        if not np.isfinite(array).all():
            bad = array[~np.isfinite(array)].flat[0]
            raise DataError(
                f"sample {index}",
                f"has {bad} in its {name}",
                "find its cause, and leave the sample out",
            )
