"""`facets`: documents for each part of a query: the thing in another hand, and other things in the hand that is asked for.

Legend: M documents of the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, Image, text_of
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.retriever import Retrieved, RetrieverConfig
from cm3plugins.retrievers.bm25 import (
    DIGITS,
    BM25RetrieverConfig,
    QueryByQuery,
    indexed,
    words_of,
)
from cm3plugins.retrievers.hybrid import HybridRetriever, HybridRetrieverConfig
from cm3plugins.retrievers.memory_vectors import read_texts
from cm3run.prompting import Answer, AnsweringRetriever, AnsweringRetrieverConfig

if TYPE_CHECKING:
    from cm3run.nearness import Shape

#: The most pictures kept for comparison: 4 KB each.
_KEPT_SHAPES = 50_000
_Scores = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class FacetsRetrieverConfig(AnsweringRetrieverConfig):
    """Retrieves in turn the thing that a query names and the hand that it is to be drawn in.

    A caption such as "bell off, outline rounded, lucide" is the thing, a separator, and the hand. The first document is
    the best for the thing, of those the nearest in hand; the second is the best for the hand and shows another thing,
    the most similar one; then the second best of both, and so on. Both are compared by words, with BM25. A query without
    a hand finds things alone. The paper asks for documents that are relevant and diverse (CM3leon, section 2.1).

    Args:
        separator: what stands between thing and hand, at its first occurrence.
        k1, b: see `bm25`; names are short, so their length counts little.
        meanings: how prompts are compared with things and hands in generation, a retriever `hybrid`; its keys
            `unknown_below` and `same_above` count, too. Training compares words all the same. None: so do prompts.
        max_nearness: a query with a picture, as training has, gets for the hand no document whose picture is nearer to
            its own (`cm3run.nearness`): a model that often sees its target before the prompt learns to repeat what it
            sees. 1: all.
    """

    not_in_outputs: ClassVar[tuple[str, ...]] = ("meanings",)
    only_in_generation: ClassVar[tuple[str, ...]] = ("meanings",)
    num_facets: ClassVar[int] = 2
    later_keys: ClassVar[tuple[str, ...]] = ("meanings", "max_nearness")
    outside: ClassVar[Mapping[str, Outside]] = {"separator": TEXT}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "k1": (0, 1e6),
        "b": (0, 1),
        "max_nearness": (0, 1),
    }

    k1: float = 1.5
    b: float = 0.75
    separator: str = ","
    meanings: RetrieverConfig | None = None
    max_nearness: float = 1.0

    @property
    def answers(self) -> bool:
        """Whether those of `meanings` are."""
        return isinstance(self.meanings, HybridRetrieverConfig) and self.meanings.answers

    def avoids(self, style: str) -> bool:
        """Whether `meanings` does."""
        return isinstance(self.meanings, HybridRetrieverConfig) and self.meanings.avoids(style)

    def check(self) -> None:
        """Check the separator and the inner retriever."""
        super().check()
        if not isinstance(self.meanings, (HybridRetrieverConfig, type(None))):
            raise RecipeError(
                "retriever.meanings",
                "is a retriever that does not compare things and hands",
                "use {name: hybrid, encoder: minilm}",
            )
        if not self.separator:
            raise RecipeError(
                "retriever.separator", "is empty", "use what stands behind the thing, such as ','"
            )

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> FacetsRetriever:
        """Index the memory's texts; `embedder` serves `meanings` only, where that has none of its own."""
        self.check()
        return FacetsRetriever(self, memory, embedder)


class FacetsRetriever(QueryByQuery, AnsweringRetriever):
    """See the config. Scores of `retrieve` are 1 / (rank of its facet), since those of two facets are not comparable;
    those of `answer` are the similarity of the things.

    Args:
        config: BM25's parameters, the separator, and how prompts are compared.
        memory: M documents.
        embedder: the recipe's, for prompts.
    """

    def __init__(
        self,
        config: FacetsRetrieverConfig,
        memory: DocumentSource,
        embedder: Embedder | None = None,
    ) -> None:
        super().__init__(memory)
        self._config, self._embedder = config, embedder
        self._shapes: dict[int, Shape | None] = {}

    @cached_property
    def _meanings(self) -> HybridRetriever:
        """Compares prompts; training has no use for it."""
        config = self._config.meanings
        assert isinstance(config, HybridRetrieverConfig)
        return config.build(self._memory, self._embedder)

    @cached_property
    def _indexed(self) -> tuple[_Words, _Words]:
        """The words of all things, and of all hands."""
        facets = [self._facets(text) for text in read_texts(self._memory)]
        own = BM25RetrieverConfig(k1=self._config.k1, b=self._config.b)
        return _Words([thing for thing, _ in facets], own), _Words(
            [hand for _, hand in facets], own
        )

    @cached_property
    def _marks_M(self) -> npt.NDArray[np.uint64]:
        ids = (self._memory.id(index) for index in range(len(self._memory)))
        return np.fromiter((_mark(one) for one in ids), np.uint64, len(self._memory))

    def _facets(self, text: str) -> tuple[list[str], list[str]]:
        thing, _, hand = text.partition(self._config.separator)
        return words_of(thing), words_of(hand)

    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        thing, hand = self._facets(text_of(query))
        things, hands = self._indexed
        found = self._in_turn(
            query,
            (things.scores(thing), hands.scores(hand)),
            lambda index: things.same(index, thing),
            exclude,
        )
        return [
            Retrieved(index, self._memory.id(index), 1 / rank, facet=facet)
            for rank, facet, index in islice(found, number)
        ]

    @property
    def answers(self) -> bool:
        """Whether prompts are compared by meaning."""
        return self._config.meanings is not None

    def likeness(self, texts: Sequence[str], others: Sequence[str]) -> VectorArray | None:
        """That of `meanings`."""
        return self._meanings.likeness(texts, others) if self.answers else None

    def _answer(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[tuple[list[Retrieved], Answer | None]]:
        return [
            self._answer_to(query, num_retrieved, names)
            for query, names in zip(queries, exclude, strict=True)
        ]

    def _answer_to(
        self, query: Document, number: int, exclude: Collection[str]
    ) -> tuple[list[Retrieved], Answer | None]:
        meanings = self._meanings
        compared = meanings.compared(text_of(query))
        if compared is None:
            return [], None
        thing_M = compared.thing_M
        hand_M = compared.hand_M if compared.reading.style else np.zeros_like(thing_M)
        found = self._in_turn(
            query,
            (thing_M, hand_M),
            lambda index: bool(thing_M[index] >= meanings.same_above),
            exclude,
        )
        results = [
            Retrieved(index, self._memory.id(index), float(thing_M[index]), facet=facet)
            for _, facet, index in islice(found, number)
        ]
        return results, meanings.answered(compared, exclude)

    def _in_turn(
        self,
        query: Document,
        scores: tuple[_Scores, _Scores],
        is_thing: Callable[[int], bool],
        exclude: Collection[str],
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (rank in its facet, facet, index) of the documents for the thing (0) and for the hand (1) by turns.

        Args:
            query: decides the order of equals.
            scores: of all documents, for the thing and for the hand; 0 or less: it is not for it.
            is_thing: whether a document shows the thing, and so is none of the other things in the hand.
            exclude: ids and content keys.
        """
        # Which of many equal ones comes first depends on the query, so that all are seen in training.
        drawn_M = self._marks_M * np.uint64(_mark(text_of(query)) | 1)
        taken: set[int] = set()
        is_near = self._is_near(query)

        def best(first_M: _Scores, second_M: _Scores, same: bool) -> Iterator[int]:
            places = np.flatnonzero(first_M > 0)
            for index in _in_order(places, first_M[places], second_M[places], drawn_M[places]):
                if (
                    index not in taken
                    and (same or not is_thing(index))
                    and not self.is_excluded(index, exclude)
                    and (same or not is_near(index))
                ):
                    taken.add(index)
                    yield index

        thing_M, hand_M = scores
        lists = {0: best(thing_M, hand_M, True), 1: best(hand_M, thing_M, False)}
        rank = 1
        while lists:
            for facet, one in tuple(lists.items()):
                index = next(one, None)
                if index is None:
                    del lists[facet]
                else:
                    yield rank, facet, index
            rank += 1

    def _is_near(self, query: Document) -> Callable[[int], bool]:
        """Whether a document's picture is nearer to the query's than `max_nearness`."""
        most = self._config.max_nearness
        own = _shape_of(query) if most < 1 else None
        if own is None:
            return lambda index: False

        def is_near(index: int) -> bool:
            other = self._shape(index)
            return other is not None and own.nearness(other) > most

        return is_near

    def _shape(self, index: int) -> Shape | None:
        """Of a document's picture; those of the last ones are kept, since many queries compare the same."""
        shapes = self._shapes
        if index not in shapes:
            if len(shapes) >= _KEPT_SHAPES:
                shapes = self._shapes = {}  # a new one: other threads may read the old one
            shapes[index] = _shape_of(self._memory.document(index))
        return shapes[index]


def _shape_of(document: Document) -> Shape | None:
    """The shape of a document's first picture; None: it has none, or it can't be read."""
    from cm3run.nearness import Shape  # loads PIL, which recipes don't need

    picture = next((one for one in document if isinstance(one, Image)), None)
    with suppress(DataError):
        return None if picture is None else Shape(picture.load())
    return None


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
