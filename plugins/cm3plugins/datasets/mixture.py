"""Data set `mixture`: several data sets in given shares, each with a task.

An epoch has as many documents as all parts together. Part d has n_d of the N records, and a share p_d of
the epoch; its resampling ratio r_d = p_d N / n_d is kept within `clip` (CM3leon: 0.3 to 3), and the other
shares are adjusted. Every prefix of an epoch has each part's share, to within one document. A part's records
come in random order, each once before any repeats, across all epochs.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cm3core.document import Document
from cm3core.errors import DataError, RecipeError, close_match
from cm3core.interfaces.component import check_value, chosen_name
from cm3core.interfaces.dataset import (
    DocumentSource,
    DocumentSourceConfig,
    Original,
    Provenance,
    SkippedRecord,
    TaskSource,
)
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.task import TaskConfig
from cm3run.tasks import title_of

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record

#: Number of steps to compute shares; each halves the error.
_NUM_HALVINGS = 200
#: Smallest share relative to the largest; smaller ones are raised to it.
_LEAST_SHARE = 1e-30
#: Separates the random streams of the parts' orders from all others.
_ORDER = 7


def counts_of(
    sizes: Sequence[int], shares: Sequence[float], clip: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Return the number of documents of each part in an epoch of sum(sizes), int64 [D].

    The ratios are clip(s * share / size), with the unique s that fills the epoch.

    >>> counts_of([90, 10], [1.0, 1.0], (0.3, 3.0)).tolist()  # 50 of 10 would be five times
    [70, 30]
    """
    sizes_D, shares_D = np.asarray(sizes, np.float64), np.asarray(shares, np.float64)
    # smaller shares end at the minimum ratio anyway, and the bisection would not reach their scale
    shares_D = np.maximum(shares_D / shares_D.max(), _LEAST_SHARE)
    total, wanted_D = int(sizes_D.sum()), shares_D / shares_D.sum() * sizes_D.sum() / sizes_D

    def filled(scale: float) -> npt.NDArray[np.float64]:
        return np.asarray(np.clip(scale * wanted_D, *clip) * sizes_D)

    low, high = 0.0, max(1.0, clip[1]) / float(wanted_D.min())
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if filled(middle).sum() < total else (low, middle)
    exact_D = filled(high)
    counts_D = np.floor(exact_D + 1e-9).astype(np.int64)
    missing = total - int(counts_D.sum())
    counts_D[np.argsort(counts_D - exact_D, kind="stable")[:missing]] += 1
    return counts_D


def part_order(counts_D: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the part of each document of an epoch, int64 [N]: among the first n, a part with c of the N documents
    has n c / N of them, to within one (R. Tijdeman, "The chairman assignment problem", 1980).

    >>> part_order(np.array([4, 2])).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    num_parts, total = len(counts_D), int(counts_D.sum())
    if num_parts == 1:
        return np.zeros(total, np.int64)
    slack = 1 / (2 * num_parts - 2)
    # document k of a part comes after its release time and before its deadline
    numbers = np.concatenate([np.arange(count) for count in counts_D.tolist()])
    parts = np.repeat(np.arange(num_parts), counts_D)
    every = total / counts_D[parts]
    owed = np.ceil((numbers + slack) * every - 1e-9).astype(np.int64)
    order = np.argsort(owed, kind="stable")
    coming = list(
        zip(owed[order], ((numbers + 1 - slack) * every)[order], parts[order], strict=True)
    )
    coming.reverse()
    waiting: list[tuple[float, int]] = []
    found = np.empty(total, np.int64)
    for place in range(total):
        while coming and coming[-1][0] <= place + 1:
            _, latest, part = coming.pop()
            heappush(waiting, (latest, part))
        found[place] = heappop(waiting)[1]
    return found


def drawn_records(
    size: int, start: int, stop: int, seeds: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Return the records `start` to `stop` of an endless series of permutations of `size` records."""
    runs = []
    for number in range(start // size, (stop - 1) // size + 1):
        rng = np.random.default_rng(np.random.SeedSequence((*seeds, number), spawn_key=(_ORDER,)))
        first = number * size
        runs.append(rng.permutation(size)[max(start - first, 0) : stop - first])
    return np.concatenate(runs)


#: Maximum number of parts.
_MAX_PARTS = 1000


@dataclass(kw_only=True)
class MixtureConfig(DocumentSourceConfig):
    """Several data sets in given shares, each with a task or with plain documents.

    Args:
        split: "train" uses each part's own split; any other split comes from the parts that have it.
        parts: name -> data set.
        tasks: name of a part -> the task that turns its records into documents; other parts have plain documents.
        weights: name of a part -> factor of its share; default 1.
        sampling: a share is proportional to its weight times this: "proportional": the part's number of
            records; "temperature": that number to the power of 1 / `temperature`; "explicit": 1.
        temperature: 1 equals "proportional"; higher values make the parts more equal.
        clip: minimum and maximum average number of times that a record of a part is drawn in an
            epoch.
        memory: name of the part whose documents are retrieved, as plain documents, and prepended to its own
            documents only; other parts get none. null: all parts form one memory for each other.
        retrieving: names of the parts that retrieved documents are prepended to. null: `memory` alone, or
            all. Documents for a task's response are retrieved by the inputs in its prompt.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "memory": TEXT,
        "retrieving": TEXT,
    }

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "weights": (0, 1e9),
        "temperature": (1e-3, 1e6),
        "clip": (0, 1e6),
    }
    parts: dict[str, DocumentSourceConfig]
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    sampling: Literal["proportional", "temperature", "explicit"] = "proportional"
    temperature: float = 1.0
    clip: list[float] = field(default_factory=lambda: [0.3, 3.0])
    memory: str | None = None
    retrieving: list[str] | None = None

    def check(self) -> None:
        """Raise `RecipeError` for invalid parts or weights."""
        super().check()
        if not 1 <= len(self.parts) <= _MAX_PARTS:
            raise RecipeError(
                "dataset.parts",
                f"has {len(self.parts)} data sets",
                "add some: parts: {mine: jsonl}",
            )
        for key, given in (("tasks", self.tasks), ("weights", self.weights)):
            for name in given:
                if name not in self.parts:
                    raise RecipeError(
                        f"dataset.{key}",
                        f"there is no part {name!r}",
                        close_match(name, self.parts),
                    )
        for key, names in (
            ("memory", [] if self.memory is None else [self.memory]),
            ("retrieving", self.retrieving or []),
        ):
            for name in names:
                if name not in self.parts:
                    raise RecipeError(
                        f"dataset.{key}",
                        f"there is no part {name!r}",
                        close_match(name, self.parts),
                    )
        if self.sampling == "explicit" and (missing := set(self.parts) - set(self.weights)):
            raise RecipeError(
                "dataset.weights",
                f"has none for the part {min(missing)!r}",
                "set one for each part, or choose another dataset.sampling",
            )
        weights = [self.weights.get(name, 1.0) for name in self.parts]
        check_value(
            "dataset.weights", self.weights, sum(weights) > 0, "give a part a weight above 0"
        )
        for name, weight in zip(self.parts, weights, strict=True):
            check_value(
                f"dataset.weights.{name}",
                weight,
                weight > 0,
                f"use more than 0, or leave the part out: parts: {{{name}: null}}",
            )
        check_value(
            "dataset.clip",
            self.clip,
            len(self.clip) == 2 and 0 <= self.clip[0] <= 1 <= self.clip[1],
            "use two numbers around 1; the paper's are [0.3, 3]",
        )

    def trained_tasks(self) -> list[TaskConfig | None]:
        return [
            task
            for name, part in self.parts.items()
            for task in ([self.tasks[name]] if name in self.tasks else part.trained_tasks())
        ]

    def retrieving_tasks(self) -> list[TaskConfig | None]:
        chosen = self._retrieving()
        return [
            task
            for name, part in self.parts.items()
            if chosen is None or name in chosen
            for task in ([self.tasks[name]] if name in self.tasks else part.retrieving_tasks())
        ]

    def structures(self) -> list[str]:
        return list(
            dict.fromkeys(name for part in self.parts.values() for name in part.structures())
        )

    def memory_config(self) -> DocumentSourceConfig:
        return self if self.memory is None else self.parts[self.memory].memory_config()

    @property
    def has_turns(self) -> bool:
        """Whether a part without a task has turns."""
        return any(part.has_turns for name, part in self.parts.items() if name not in self.tasks)

    def build(self) -> MixtureSource:
        """Return the mixture.

        Raises:
            DataError: no part has the split, or a part has no usable record.
        """
        self.check()
        sources: dict[str, DocumentSource] = {}
        for name, part in self.parts.items():
            if self.split not in ("train", *part.splits):
                continue
            config = part if self.split == "train" else replace(part, split=self.split)
            config.check()
            source = config.build()
            task = self.tasks.get(name)
            if task is not None:
                source = TaskSource(source, task.build(), title_of(chosen_name(task), task))
            sources[name] = source
            if not len(sources[name]):
                raise DataError(f"dataset.parts.{name}", *_why_empty(sources[name], self.split))
        if not sources:
            raise DataError(
                "dataset", f"no part has a split {self.split!r}", "use a split that a part has"
            )
        weights = [self.weights.get(name, 1.0) for name in sources]
        shares = self._shares(sources, weights)
        clip = (self.clip[0], self.clip[1])
        return MixtureSource(sources, shares, clip, tuple(self.parts), self._retrieving())

    def _retrieving(self) -> frozenset[str] | None:
        if self.retrieving is not None:
            return frozenset(self.retrieving)
        return None if self.memory is None else frozenset([self.memory])

    def _shares(
        self, sources: Mapping[str, DocumentSource], weights: Sequence[float]
    ) -> list[float]:
        """Return the shares before clipping, scaled so that the largest is 1."""
        power = {"proportional": 1.0, "temperature": 1 / self.temperature, "explicit": 0.0}
        # in logarithms: 100,000 to the power of 1 / 0.01 would overflow
        logs = [
            math.log(weight) + power[self.sampling] * math.log(len(source))
            for source, weight in zip(sources.values(), weights, strict=True)
        ]
        return [math.exp(log - max(logs)) for log in logs]


def _why_empty(source: DocumentSource, split: str) -> tuple[str, str]:
    """Return cause and next step for a part without a record."""
    if not source.skipped:
        return f"has no record in split {split!r}", "leave it out, or add records"
    first = source.skipped[0]
    return (
        f"has no usable record; the first bad one is {first.place}: {first.cause}",
        first.next_step,
    )


class MixtureSource(DocumentSource):
    """The documents of all parts, one part after the other; an epoch's order draws from them.

    Args:
        sources: name -> documents of a part, at least one each.
        shares: shares of the parts, not normalised.
        clip: minimum and maximum resampling ratio.
        parts: names of all parts, including those not in this split, so that part numbers are the same in
            every split. None: the names in `sources`.
        retrieving: parts whose documents get retrieved ones; None: all.

    Raises:
        DataError: a part's share is less than one document of an epoch.
    """

    def __init__(
        self,
        sources: Mapping[str, DocumentSource],
        shares: Sequence[float],
        clip: tuple[float, float],
        parts: tuple[str, ...] | None = None,
        retrieving: frozenset[str] | None = None,
    ) -> None:
        self.sources, self._names = list(sources.values()), tuple(sources)
        self._parts = self._names if parts is None else parts
        self._numbers = [self._parts.index(name) for name in self._names]
        self._retrieving = retrieving
        sizes = [len(source) for source in self.sources]
        self._starts = np.cumsum([0, *sizes])
        self._first: list[int] = self._starts.tolist()
        #: Number of documents of each part in an epoch, int64 [D].
        self.counts_D = counts_of(sizes, shares, clip)
        for name, count in zip(self._names, self.counts_D.tolist(), strict=True):
            if count < 1:
                raise DataError(
                    f"dataset.parts.{name}",
                    f"its share is less than one of the {sum(sizes)} documents of an epoch",
                    f"raise dataset.weights.{name}, or leave the part out",
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def parts(self) -> tuple[str, ...]:
        return self._parts

    def part(self, index: int) -> int:
        return self._numbers[self._source(index)]

    def retrieves(self, index: int) -> bool:
        name = self._names[self._source(index)]
        chosen = self._retrieving is None or name in self._retrieving
        return chosen and super().retrieves(index)

    def query(self, index: int) -> Document:
        source, place = self._place(index)
        return source.query(place)

    def _source(self, index: int) -> int:
        return bisect_right(self._first, index) - 1  # many times faster than numpy for one index

    def _place(self, index: int) -> tuple[DocumentSource, int]:
        number = self._source(index)
        return self.sources[number], index - int(self._starts[number])

    def id(self, index: int) -> str:
        """Name of the part, and the document's id in it."""
        source, place = self._place(index)
        return f"{self._names[self._source(index)]}/{source.id(place)}"

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        source, place = self._place(index)
        return source.document(place, rng)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        source, place = self._place(index)
        return source.record(place, rng)

    def content_keys(self, index: int) -> frozenset[str]:
        source, place = self._place(index)
        return source.content_keys(place)

    def group(self, index: int) -> str:
        source, place = self._place(index)
        return source.group(place)

    def is_withheld(self, index: int) -> bool:
        source, place = self._place(index)
        return source.is_withheld(place)

    def truth(self, index: int) -> Mapping[str, object]:
        source, place = self._place(index)
        return source.truth(place)

    def provenance(self, index: int) -> Provenance:
        source, place = self._place(index)
        return source.provenance(place)

    def original(self, index: int) -> Original | None:
        source, place = self._place(index)
        return source.original(place)

    @property
    def is_encoded(self) -> bool:
        return all(source.is_encoded for source in self.sources)

    @property
    def is_far(self) -> bool:
        return any(source.is_far for source in self.sources)

    def check_tokenizers(self, text: str, image: str) -> None:
        for source in self.sources:
            source.check_tokenizers(text, image)

    def text_alternatives(self, index: int) -> list[tuple[str, ...]] | None:
        source, place = self._place(index)
        return source.text_alternatives(place)

    def instructions(self) -> Mapping[str, Mapping[str, int] | None]:
        found: dict[str, Counter[str] | None] = {}
        for source in self.sources:
            for title, counts in source.instructions().items():
                before = found.get(title, Counter())
                known = None not in (before, counts)
                found[title] = Counter(before) + Counter(counts) if known else None
        return found

    def provenances(self) -> Mapping[Provenance, int]:
        return sum((Counter(source.provenances()) for source in self.sources), Counter())

    @property
    def skipped(self) -> list[SkippedRecord]:
        return [record for source in self.sources for record in source.skipped]

    @property
    def fingerprint(self) -> str:
        return _joined(self._names, [source.fingerprint for source in self.sources])

    @property
    def content_fingerprint(self) -> str:
        shares = [f"{count}" for count in self.counts_D.tolist()]
        return _joined(
            [*self._names, *shares, *self._memory_name()],
            [source.content_fingerprint for source in self.sources],
        )

    @property
    def documents_fingerprint(self) -> str:
        return _joined(
            [*self._names, *self._memory_name()],
            [source.documents_fingerprint for source in self.sources],
        )

    def _memory_name(self) -> list[str]:
        """Return which parts have documents prepended."""
        return [] if self._retrieving is None else [f"memory={','.join(sorted(self._retrieving))}"]

    @cached_property
    def _part_order(self) -> npt.NDArray[np.int64]:
        return part_order(self.counts_D)

    def epoch_order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """See `DocumentSource.epoch_order`; it has the length of the mixture."""
        parts_N = self._part_order
        order = np.empty(len(parts_N), np.int64)
        for part, count in enumerate(self.counts_D.tolist()):
            first = epoch * count
            records = drawn_records(len(self.sources[part]), first, first + count, (seed, part))
            order[parts_N == part] = self._starts[part] + records
        return order


def _joined(names: Sequence[str], fingerprints: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(["mixture", *names, *fingerprints]).encode()).hexdigest()
