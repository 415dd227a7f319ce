"""What copying scores: for an icon that is asked for, the real drawings that could be copied instead of drawing.

    thing copied          the most similar name in `train`, then the most similar hand
    hand copied           another object in the asked hand, with the most similar name
    random of the hand    any other object in the asked hand

For a set that is held out whole, its other drawings stand for the hand. Similarity of names is that of MiniLM's vectors.
No model and no retriever takes part, so every model is compared with the same drawings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from cm3core.errors import DataError
from cm3icons.data.corpus import IconCorpus, IconEntry
from cm3icons.evaluation.ranking import order
from cm3icons.judge.things import Names

THING, HAND, RANDOM = "thing copied", "hand copied", "random of the hand"


class Copied:
    """Finds the drawings.

    Args:
        corpus: with closed splits.
    """

    def __init__(self, corpus: IconCorpus) -> None:
        self._entries = corpus.entries

    def of(self, entry: IconEntry) -> Mapping[str, int]:
        """Position of each of the three drawings in the corpus.

        Raises:
            DataError: there is none in the hand.
        """
        words = self._entries.words
        hand = self._hands.get((entry.set_name, entry.style), [])
        own = [one for one in hand if words[one] != entry.words]
        if not own:
            cause = (
                f"has no drawing in its hand, {entry.set_name}, {entry.style}, that is not held out"
            )
            raise DataError(f"icon {entry.id!r}", cause, "leave the baselines of the protocol out")
        return {
            THING: self._most_similar(entry, self._trained),
            HAND: self._most_similar(entry, own),
            RANDOM: min(own, key=lambda one: order("random", entry.id, self._entries.ids[one])),
        }

    def _most_similar(self, entry: IconEntry, places: Sequence[int]) -> int:
        """The drawing with the most similar name; of those of the same name, the one in the most similar hand."""
        entries = self._entries
        rows = [self._row[entries.words[place]] for place in places]
        cosines = self._vectors[rows] @ self._vectors[self._row[entry.words]]
        best = np.flatnonzero(np.round(cosines, 3) == np.round(cosines.max(), 3))
        style = set(entry.style.split())

        def hand(place: int) -> tuple[bool, int, str]:
            alike = len(style ^ set(entries.styles[place].split()))
            other = entries.ids[place].partition("/")[0] != entry.set_name
            return other, alike, order("copied", entry.id, entries.ids[place])

        return min((places[int(one)] for one in best), key=hand)

    @cached_property
    def _trained(self) -> list[int]:
        return [place for place in self._grey if self._entries.splits[place] == "train"]

    @cached_property
    def _grey(self) -> list[int]:
        styles = self._entries.styles
        return [place for place in range(len(styles)) if "colour" not in styles[place].split()]

    @cached_property
    def _hands(self) -> dict[tuple[str, str], list[int]]:
        """(set, style) -> its drawings that may be copied: those of `train`, or of a set that is held out whole."""
        found: dict[tuple[str, str], list[int]] = {}
        for place in self._grey:
            if self._entries.splits[place] in ("train", "strangers"):
                key = self._entries[place].set_name, self._entries.styles[place]
                found.setdefault(key, []).append(place)
        return found

    @cached_property
    def _names(self) -> list[str]:
        return sorted(set(self._entries.words))

    @cached_property
    def _row(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._names)}

    @cached_property
    def _vectors(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return Names()(self._names)
