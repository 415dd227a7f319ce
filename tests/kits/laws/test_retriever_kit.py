"""The retrievers' kit: a right retriever passes, and each law fails for a retriever that is wrong
in just that way."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from cm3core.document import Document, text_of
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3kits.retriever import RetrieverContract
from kit_mutants import assert_covers, assert_law_fails, cases


class SharedWords(Retriever):
    """Right: documents by the number of words that they share with the query, equal numbers in the
    memory's order."""

    def __init__(self, memory: DocumentSource) -> None:
        self._memory, self.num_queries = memory, 0

    @property
    def memory(self) -> DocumentSource:
        return self._memory

    def ranking(self, query: Document) -> list[Retrieved]:
        words = set(text_of(query).split())
        scores = [
            float(len(words & set(text_of(self._memory.document(index)).split())))
            for index in range(len(self._memory))
        ]
        order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        return [Retrieved(index, self._memory.id(index), scores[index]) for index in order]

    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return [
            result for result in self.ranking(query) if not self.is_excluded(result.index, names)
        ][:number]

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        self.num_queries = len(queries)
        return [
            self.search(query, num_retrieved, names)
            for query, names in zip(queries, exclude, strict=True)
        ]


class TestRight(RetrieverContract):
    def over(self, memory: DocumentSource) -> Retriever:
        return SharedWords(memory)

    def make(self) -> Retriever:
        return self.over(self.memory())


class OneMore(SharedWords):
    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return super().search(query, number + 1, names)


class OthersIds(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [replace(result, id=f"{result.id}?") for result in super().ranking(query)]


class Twice(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [result for result in super().ranking(query) for _ in range(2)]


class NotFinite(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [replace(result, score=float("nan")) for result in super().ranking(query)]


class NumpyIndexes(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [
            replace(result, index=np.int64(result.index))  # type: ignore[arg-type]  # wrong on purpose
            for result in super().ranking(query)
        ]


class NumpyScores(SharedWords):
    """float64 is a subclass of float, float32 is not."""

    def ranking(self, query: Document) -> list[Retrieved]:
        return [
            replace(result, score=np.float32(result.score))  # type: ignore[arg-type]  # wrong on purpose
            for result in super().ranking(query)
        ]


class EmptiesQueries(SharedWords):
    def _retrieve(
        self, queries: list[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:  # type: ignore[override]  # wrong on purpose
        found = super()._retrieve(queries, num_retrieved, exclude)
        queries.clear()
        return found


class AddsExclusions(SharedWords):
    """A query excludes what it has found, in the caller's sets."""

    def retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: list[set[str]] | None = None
    ) -> list[list[Retrieved]]:  # type: ignore[override]  # wrong on purpose
        results = super().retrieve(queries, num_retrieved, exclude)
        for found, names in zip(results, exclude or [], strict=False):
            names.update(result.id for result in found)
        return results


class TurnsTheMemory(SharedWords):
    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        found = super()._retrieve(queries, num_retrieved, exclude)
        self._memory._documents.reverse()  # type: ignore[attr-defined]  # the kit's memory is a ListSource
        return found


class WorstFirst(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return super().ranking(query)[::-1]


class PreferredLast(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [
            replace(result, preferred=place > 3)
            for place, result in enumerate(super().ranking(query))
        ]


class ForgetsIds(SharedWords):
    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return super().search(query, number, {name for name in names if ":" in name})


class ForgetsContents(SharedWords):
    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return [result for result in self.ranking(query) if result.id not in names][:number]


class LeavesGaps(SharedWords):
    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return [
            result
            for result in self.ranking(query)[:number]
            if not self.is_excluded(result.index, names)
        ]


class DisturbedByOthers(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return super().ranking(query)[self.num_queries % 2 :]


class MoreIsOther(SharedWords):
    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        return super().search(query, number + 1, names)[number > 4 :][:number]


class ByPlace(SharedWords):
    def ranking(self, query: Document) -> list[Retrieved]:
        return [
            Retrieved(index, self._memory.id(index), float(-index))
            for index in range(len(self._memory))
        ]


class FirstOfTies(SharedWords):
    """What it finds is right; what it says of equal documents depends on their places."""

    def ranking(self, query: Document) -> list[Retrieved]:
        return [
            replace(result, score=result.score - 0.01 * result.index)
            for result in super().ranking(query)
        ]


class NotExact(SharedWords):
    def exact(self) -> Retriever:
        return WorstFirst(self._memory)


class Careless(SharedWords):
    """Gives at least one."""

    def retrieve(
        self,
        queries: Sequence[Document],
        num_retrieved: int,
        exclude: Sequence[Collection[str]] | None = None,
    ) -> list[list[Retrieved]]:
        return self._retrieve(
            queries, max(1, num_retrieved), [()] * len(queries) if exclude is None else exclude
        )


class GrowsTired(SharedWords):
    """Finds less with every call."""

    calls = 0

    def ranking(self, query: Document) -> list[Retrieved]:
        type(self).calls += 1
        return [
            replace(result, score=result.score - self.calls) for result in super().ranking(query)
        ]


class ReadsTheGlobalGenerator(SharedWords):
    """Ties are broken by the state of `random`, which is not advanced."""

    def ranking(self, query: Document) -> list[Retrieved]:
        first = random.getstate()[1][1] % 7
        order = super().ranking(query)
        return order[first:] + order[:first]


class StartsAnywhere(SharedWords):
    """Each instance has an order of its own."""

    instances = 0

    def __init__(self, memory: DocumentSource) -> None:
        super().__init__(memory)
        type(self).instances += 1
        self.first = self.instances

    def ranking(self, query: Document) -> list[Retrieved]:
        order = super().ranking(query)
        return order[self.first % 7 :] + order[: self.first % 7]


MUTANTS = {
    "results_name_memory_documents_once": [OneMore, OthersIds, Twice, NotFinite],
    "the_best_come_first": [WorstFirst, PreferredLast],
    "what_is_excluded_is_never_found": [ForgetsIds, ForgetsContents],
    "what_is_excluded_makes_room": [LeavesGaps],
    "a_batch_is_its_queries": [DisturbedByOthers],
    "searches_repeat": [GrowsTired, StartsAnywhere, ReadsTheGlobalGenerator],
    "results_have_plain_types": [NumpyIndexes, NumpyScores],
    "inputs_are_not_written_to": [EmptiesQueries, AddsExclusions, TurnsTheMemory],
    "fewer_is_a_prefix_of_more": [MoreIsOther],
    "the_memorys_order_decides_ties_only": [ByPlace, FirstOfTies],
    "exact_finds_the_same": [NotExact],
    "nothing_asked_nothing_found": [Careless],
    "a_negative_count_is_refused": [Careless],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_retriever_fails(law: str, wrong: type[SharedWords]) -> None:
    assert_law_fails(
        RetrieverContract,
        law,
        {"over": lambda self, memory: wrong(memory), "make": lambda self: self.over(self.memory())},
    )


def test_every_law_has_a_mutant() -> None:
    assert_covers(RetrieverContract, MUTANTS)
