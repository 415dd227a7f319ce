"""`random`: random documents, the baseline to beat: if they help, something leaks."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from cm3core.document import Document, content_keys, text_of
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig


@dataclass(kw_only=True)
class RandomRetrieverConfig(RetrieverConfig):
    """Retrieves random documents of the memory; the same query always gets the same ones.

    Args:
        seed: seed of the draw.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"seed": (0, 2**63 - 1)}

    seed: int = 0

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> RandomRetriever:
        """Return the retriever; `embedder` is not used."""
        return RandomRetriever(memory, self.seed)


class RandomRetriever(Retriever):
    """Draws documents at random, seeded by the content of the query.

    All scores are 0.

    Args:
        memory: M documents.
        seed: seed of the draws.
    """

    def __init__(self, memory: DocumentSource, seed: int = 0) -> None:
        self._memory, self._seed = memory, seed

    @property
    def memory(self) -> DocumentSource:
        """The documents to draw from."""
        return self._memory

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        results = []
        for query, names in zip(queries, exclude, strict=True):
            order = shuffled(len(self._memory), np.random.default_rng(self._seed_of(query)))
            allowed = (index for index in order if not self.is_excluded(index, names))
            results.append(
                [
                    Retrieved(index, self._memory.id(index), 0.0)
                    for index in islice(allowed, num_retrieved)
                ]
            )
        return results

    def _seed_of(self, query: Document) -> int:
        content = "\n".join([str(self._seed), text_of(query), *sorted(content_keys(query))])
        return int.from_bytes(
            hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:16], "big"
        )


def shuffled(size: int, rng: np.random.Generator) -> Iterator[int]:
    """Yield 0..size-1 in random order, all orders equally likely.

    A Fisher-Yates shuffle that stores only the entries it touched, so time and memory grow with the
    number of items consumed, not with `size`.
    """
    moved: dict[int, int] = {}
    for place in range(size):
        other = int(rng.integers(place, size))
        mine = moved.pop(place, place)
        if other == place:
            yield mine
        else:
            yield moved.get(other, other)
            moved[other] = mine
