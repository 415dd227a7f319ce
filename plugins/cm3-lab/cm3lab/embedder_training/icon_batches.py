"""Batches for training on the icon corpus: things that are easily confused, two versions of each, and captions as
people write them.

Half of a batch are things whose names share a word (`bell off`, `bell ring`), the other half things of one set and
style, so that neither tells them apart by half of a name or by the way they are drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cm3plugins.datasets.icons.captions import DEFAULT_TEMPLATES, caption
from cm3plugins.datasets.icons.entries import IconEntry
from cm3plugins.datasets.vector.templates import CaptionTemplate

_CLUSTER = 8
"""Things that share a word."""
_TURNED_SHARE = 0.1
"""Queries whose words are in another order."""
_MAX_OF_TAG = 20
"""A tag of more things is a category (`ui actions`), which names none of them."""
_OTHER_SET_SHARE = 0.3
"""Documents of another set where the query's own has a version."""

TEMPLATES = (
    *DEFAULT_TEMPLATES,
    CaptionTemplate("{words}, {set} style", 0.06),
    CaptionTemplate("{words} in {set} style", 0.03),
    CaptionTemplate("some {words}s, {style}", 0.03),
    CaptionTemplate("{words} icon, {style}", 0.03),
    CaptionTemplate("a {style} {words} icon", 0.03),
    CaptionTemplate("{words}, {other}, {style}, {set}", 0.05),
)
"""The data set's own, and others that people write."""


class IconBatches:
    """Rows of batches, drawn by the names, sets and styles of the entries.

    Args:
        entries: of training.
        seed: of every draw.
    """

    def __init__(self, entries: Sequence[IconEntry], seed: int) -> None:
        self.entries = _without_categories(entries)
        self._rng = np.random.default_rng(seed)
        self._versions: dict[str, list[int]] = defaultdict(list)
        self._drawn_alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        things: dict[str, dict[str, None]] = defaultdict(dict)
        for row, entry in enumerate(entries):
            self._versions[entry.words].append(row)
            self._drawn_alike[entry.set_name, entry.style].append(row)
            for word in entry.words.split():
                things[word][entry.words] = None
        self._with_word = {word: list(names) for word, names in things.items()}

    @property
    def num_things(self) -> int:
        """Number of different things."""
        return len(self._versions)

    def rows(self, number: int) -> list[int]:
        """Rows of entries of so many different things, at most all: those easily confused next to each other."""
        number = min(number, self.num_things)
        chosen: dict[str, int] = {}
        while len(chosen) < number // 2:
            self._add_cluster(chosen, number // 2)
        anchor = self.entries[self._any()]
        for row in self._shuffled(self._drawn_alike[anchor.set_name, anchor.style]):
            if len(chosen) == number:
                break
            chosen.setdefault(self.entries[row].words, row)
        while len(chosen) < number:
            row = self._any()
            chosen.setdefault(self.entries[row].words, row)
        return list(chosen.values())

    def other_version(self, row: int) -> int:
        """Row of another version of an entry's thing, mostly of its set; its own if there is none."""
        own = self.entries[row]
        others = [other for other in self._versions[own.words] if other != row]
        near = [other for other in others if self.entries[other].set_name == own.set_name]
        if near and self._rng.random() >= _OTHER_SET_SHARE:
            others = near
        return others[int(self._rng.integers(len(others)))] if others else row

    def of_other_set(self, row: int) -> int | None:
        """Row of a version by another set, None if there is none."""
        own = self.entries[row]
        others = [
            other
            for other in self._versions[own.words]
            if self.entries[other].set_name != own.set_name
        ]
        return others[int(self._rng.integers(len(others)))] if others else None

    def query(self, row: int) -> str:
        """A caption of an entry in one of many forms."""
        entry = self.entries[row]
        if self._rng.random() < _TURNED_SHARE:
            words = self._rng.permutation(entry.words.split()).tolist()
            entry = entry._replace(words=" ".join(words))
        return caption(entry, self._rng, TEMPLATES)

    def _add_cluster(self, chosen: dict[str, int], limit: int) -> None:
        anchor = self.entries[self._any()]
        words = anchor.words.split()
        names = self._with_word[words[int(self._rng.integers(len(words)))]]
        for place in self._rng.integers(len(names), size=_CLUSTER).tolist():
            if len(chosen) < limit:
                chosen.setdefault(names[place], self._version_like(names[place], anchor))

    def _version_like(self, words: str, anchor: IconEntry) -> int:
        """A version in the anchor's set and style if there is one, else any."""
        rows = self._versions[words]
        alike = [
            row
            for row in rows
            if (self.entries[row].set_name, self.entries[row].style)
            == (anchor.set_name, anchor.style)
        ]
        rows = alike or rows
        return rows[int(self._rng.integers(len(rows)))]

    def _any(self) -> int:
        return int(self._rng.integers(len(self.entries)))

    def _shuffled(self, rows: Sequence[int]) -> list[int]:
        return [int(row) for row in self._rng.permutation(rows)]


def _without_categories(entries: Sequence[IconEntry]) -> list[IconEntry]:
    """Entries with those tags alone that are other names of a thing."""
    of_tag: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for tag in entry.tags:
            of_tag[tag].add(entry.words)
    return [
        entry._replace(tags=tuple(tag for tag in entry.tags if len(of_tag[tag]) <= _MAX_OF_TAG))
        for entry in entries
    ]
