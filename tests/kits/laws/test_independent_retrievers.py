"""Maximal marginal relevance, written from its paper (Carbonell and Goldstein 1998) in plain numpy, passes the
retrievers' kit; where the excluded take its places, the kit says so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest

from cm3core.document import Document
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.retriever import Retrieved, Retriever
from cm3kits.retriever import (
    HashEmbedder,
    ListSource,
    RetrieverContract,
    example_documents,
)
from kit_mutants import assert_law_fails, run_law


class MMR(Retriever):
    """Documents one after another, each the best by its cosine with the query and its highest cosine with a
    document already chosen: `weight * cos(d, query) - (1 - weight) * max cos(d, chosen)`, which is the score.
    While nothing is chosen, the highest cosine is the lowest there is, -1, so that scores never rise.

    `pool` is how many of the documents nearest to the query are chosen from; None: all.
    """

    def __init__(
        self, memory: DocumentSource, weight: float = 0.5, pool: int | None = None
    ) -> None:
        self._memory, self._weight, self._pool = memory, weight, pool
        self._embedder = HashEmbedder()
        documents = [memory.document(index) for index in range(len(memory))]
        self._vectors_ND = self._embedder.embed_documents(documents).astype(np.float64)

    @property
    def memory(self) -> DocumentSource:
        return self._memory

    def nearness(self, query: Document) -> np.ndarray:
        """Cosines [N] of the query with each document."""
        near_N: np.ndarray = (self._vectors_ND * self._embedder.embed_document(query)).sum(-1)
        return near_N

    def choose(self, near_N: np.ndarray, indices: list[int], number: int) -> list[Retrieved]:
        """At most `number` of the documents `indices`."""
        left = sorted(indices, key=lambda index: (-near_N[index], index))[: self._pool]
        chosen: list[Retrieved] = []
        highest_N = np.full(len(near_N), -1.0)
        while left and len(chosen) < number:
            value_N = self._weight * near_N - (1 - self._weight) * highest_N
            best = max(left, key=lambda index: value_N[index])
            left.remove(best)
            chosen.append(Retrieved(best, self._memory.id(best), float(value_N[best])))
            alike_N = (self._vectors_ND * self._vectors_ND[best]).sum(-1)
            highest_N = np.maximum(highest_N, alike_N)
        return chosen

    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        allowed = [i for i in range(len(self._memory)) if not self.is_excluded(i, names)]
        return self.choose(self.nearness(query), allowed, number)

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        return [
            self.search(query, num_retrieved, names)
            for query, names in zip(queries, exclude, strict=True)
        ]

    def without(self, found: list[Retrieved], names: Collection[str]) -> list[Retrieved]:
        """Results without those that are excluded: too late."""
        return [one for one in found if not self.is_excluded(one.index, names)]


class ExcludesAfterwards(MMR):
    """What is excluded is taken out of the documents chosen."""

    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        every = list(range(len(self._memory)))
        return self.without(self.choose(self.nearness(query), every, number), names)


class ExcludesFromThePool(MMR):
    """What is excluded is taken out of the nearest documents, so that fewer are left to choose from."""

    def search(self, query: Document, number: int, names: Collection[str]) -> list[Retrieved]:
        near_N = self.nearness(query)
        every = sorted(range(len(self._memory)), key=lambda index: (-near_N[index], index))
        pool = [index for index in every[: self._pool] if not self.is_excluded(index, names)]
        return self.choose(near_N, pool, number)


#: Weights of nearness to the query, and documents chosen from.
SETTINGS = [(1.0, None), (0.7, None), (0.3, None), (0.5, 12), (1.0, 6)]


def test_it_chooses_as_the_paper_says() -> None:
    """Three documents, by hand: the second best is nearly the best again, so that the third comes before it."""
    mmr = MMR(ListSource(example_documents()[:3]))
    mmr._vectors_ND = np.array([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0]])
    found = mmr.choose(np.array([0.8, 0.9, 0.6]), [0, 1, 2], 3)
    assert [one.index for one in found] == [1, 2, 0]
    # 0.9 / 2 + 1 / 2; 0.6 / 2 - 0.28 / 2; 0.8 / 2 - 0.96 / 2
    assert [one.score for one in found] == pytest.approx([0.95, 0.16, -0.08])


@pytest.mark.parametrize("law", RetrieverContract.laws())
@pytest.mark.parametrize(("weight", "pool"), [SETTINGS[1], SETTINGS[3]])
def test_a_right_one_passes(weight: float, pool: int | None, law: str) -> None:
    run_law(RetrieverContract, law, attributes(MMR, weight, pool))


@pytest.mark.parametrize(("weight", "pool"), SETTINGS)
def test_excluding_what_was_chosen_leaves_gaps(weight: float, pool: int | None) -> None:
    wrong = attributes(ExcludesAfterwards, weight, pool)
    assert_law_fails(RetrieverContract, "what_is_excluded_makes_room", wrong)


@pytest.mark.parametrize("weight", [0.7, 0.3])
def test_excluding_from_the_nearest_leaves_gaps(weight: float) -> None:
    wrong = attributes(ExcludesFromThePool, weight, 6)
    assert_law_fails(RetrieverContract, "what_is_excluded_makes_room", wrong)


def attributes(kind: type[MMR], weight: float, pool: int | None) -> dict[str, Any]:
    """Those of a test of one over the kit's memory."""
    return {
        "over": lambda self, memory: kind(memory, weight, pool),
        "make": lambda self: self.over(self.memory()),
        "max_examples": 25,
    }
