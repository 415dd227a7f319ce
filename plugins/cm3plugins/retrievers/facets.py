"""`facets`: documents for each part of a query: the thing in another hand, and other things in the hand that is asked for.

Legend: M documents of the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, text_of
from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.retriever import Retrieved, RetrieverConfig
from cm3plugins.retrievers.bm25 import (
    DIGITS,
    BM25RetrieverConfig,
    QueryByQuery,
    indexed,
    words_of,
)


@dataclass(kw_only=True)
class FacetsRetrieverConfig(RetrieverConfig):
    """Retrieves in turn the thing that a query names and the hand that it is to be drawn in.

    A caption such as "bell off, outline rounded, lucide" is the thing, a separator, and the hand. The first document is
    the best for the thing, of those the nearest in hand; the second is the best for the hand and shows another thing,
    the most similar one; then the second best of both, and so on. Both are compared by words, with BM25. A query without
    a hand finds things alone. The paper asks for documents that are relevant and diverse (CM3leon, section 2.1).

    Args:
        separator: what stands between thing and hand, at its first occurrence.
        k1, b: see `bm25`; names are short, so their length counts little.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"separator": TEXT}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k1": (0, 1e6), "b": (0, 1)}

    k1: float = 1.5
    b: float = 0.75
    separator: str = ","

    def check(self) -> None:
        """Check the separator."""
        super().check()
        if not self.separator:
            raise RecipeError(
                "retriever.separator", "is empty", "use what stands behind the thing, such as ','"
            )

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> FacetsRetriever:
        """Index the memory's texts; `embedder` is not used."""
        return FacetsRetriever(self, memory)


class FacetsRetriever(QueryByQuery):
    """See the config. Scores are 1 / (rank of its facet), since those of two facets are not comparable.

    Args:
        config: BM25's parameters, and the separator.
        memory: M documents.
    """

    def __init__(self, config: FacetsRetrieverConfig, memory: DocumentSource) -> None:
        super().__init__(memory)
        self._separator = config.separator
        things, hands = [], []
        for index in range(len(memory)):
            thing, hand = self._facets(memory.document(index))
            things.append(thing)
            hands.append(hand)
        own = BM25RetrieverConfig(k1=config.k1, b=config.b)
        self._things, self._hands = _Words(things, own), _Words(hands, own)
        ids = (memory.id(index) for index in range(len(memory)))
        self._marks_M = np.fromiter((_mark(one) for one in ids), np.uint64, len(memory))

    def _facets(self, document: Document) -> tuple[list[str], list[str]]:
        thing, _, hand = text_of(document).partition(self._separator)
        return words_of(thing), words_of(hand)

    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        thing, hand = self._facets(query)
        thing_M, hand_M = self._things.scores(thing), self._hands.scores(hand)
        # Which of many equal ones comes first depends on the query, so that all are seen in training.
        drawn_M = self._marks_M * np.uint64(_mark(text_of(query)) | 1)
        taken: set[int] = set()

        def best(
            first_M: npt.NDArray[np.float64], second_M: npt.NDArray[np.float64], same: bool
        ) -> Iterator[int]:
            places = np.flatnonzero(first_M > 0)
            for index in _in_order(places, first_M[places], second_M[places], drawn_M[places]):
                is_thing = self._things.same(index, thing)
                if (
                    index not in taken
                    and (same or not is_thing)
                    and not self.is_excluded(index, exclude)
                ):
                    taken.add(index)
                    yield index

        lists = [best(thing_M, hand_M, True), best(hand_M, thing_M, False)]
        results: list[Retrieved] = []
        rank = 1
        while lists and len(results) < number:
            for one in tuple(lists):
                index = next(one, None)
                if index is None:
                    lists.remove(one)
                elif len(results) < number:
                    results.append(Retrieved(index, self._memory.id(index), 1 / rank))
            rank += 1
        return results


class _Words:
    """BM25 over one facet of all documents."""

    def __init__(self, texts: Sequence[Sequence[str]], config: BM25RetrieverConfig) -> None:
        self._words = [frozenset(words) for words in texts]
        self._word_ids, self._postings = indexed(texts, config)

    def scores(self, words: Sequence[str]) -> npt.NDArray[np.float64]:
        """Scores of all documents, [M]: sums over the query's words in order, rounded."""
        scores_M = np.zeros(len(self._words), np.float32)
        for word in sorted(set(words)):
            if word in self._word_ids:
                documents, values = self._postings[self._word_ids[word]]
                scores_M[documents] += values
        return np.asarray(np.round(scores_M.astype(np.float64), DIGITS), np.float64)

    def same(self, index: int, words: Sequence[str]) -> bool:
        """Whether a document has exactly these words."""
        return self._words[index] == frozenset(words)


def _in_order(
    places_C: npt.NDArray[np.int64],
    first_C: npt.NDArray[np.float64],
    second_C: npt.NDArray[np.float64],
    drawn_C: npt.NDArray[np.uint64],
) -> Iterator[int]:
    """Yield places by falling first score, then by falling second score, then by `drawn_C`. Few are wanted of many, so
    only those of one first score are sorted at a time."""
    while len(places_C):
        best = first_C == first_C.max()
        order = np.lexsort((drawn_C[best], -second_C[best]))
        yield from places_C[best][order].tolist()
        rest = ~best
        places_C, first_C = places_C[rest], first_C[rest]
        second_C, drawn_C = second_C[rest], drawn_C[rest]


def _mark(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
