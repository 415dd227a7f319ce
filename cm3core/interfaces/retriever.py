"""Kind `retriever`: a query document -> the k memory documents that stand in front of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from cm3core.document import Document
from cm3core.errors import DataError
from cm3core.interfaces.component import ComponentConfig

if TYPE_CHECKING:
    from cm3core.interfaces.dataset import DocumentSource
    from cm3core.interfaces.embedder import Embedder


@dataclass(kw_only=True)
class RetrieverConfig(ComponentConfig):
    """Base of retrievers' configs.

    Args:
        num_retrieved: most documents in front of a query (paper: 3 in training, 1 or 2 at inference).
        random_num_retrieved: in training draw 0..num_retrieved for each sequence, so that prompts without documents work.
        num_ranks: in training, documents are drawn from so many best results, so that a query is seen in several contexts.
    """

    kind: ClassVar[str] = "retriever"
    num_retrieved: int = 1
    random_num_retrieved: bool = True
    num_ranks: int = 8

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> Retriever:
        """Return a retriever over `memory`. `embedder` is the recipe's, None when the recipe has none."""
        raise NotImplementedError


@dataclass(frozen=True)
class Retrieved:
    """One result: `index` into the memory, its document's `id`, and the similarity `score` (higher is nearer)."""

    index: int
    id: str
    score: float
    #: Which part of the query found it: "text" or "image".
    found_by: str = field(default="text", compare=False)


class Retriever(ABC):
    """Finds memory documents for queries. The query's own document is never returned (`exclude`)."""

    @property
    @abstractmethod
    def memory(self) -> DocumentSource:
        """The documents that results index."""

    @abstractmethod
    def _retrieve(self, queries: Sequence[Document], num_retrieved: int,
                  exclude: Sequence[Collection[str]]) -> list[list[Retrieved]]:
        """Results of each query, best first, at most `num_retrieved`, no id of `exclude[i]` among them."""

    def retrieve(self, queries: Sequence[Document], num_retrieved: int,
                 exclude: Sequence[Collection[str]] | None = None) -> list[list[Retrieved]]:
        """The nearest memory documents of each query, best first.

        Args:
            queries: documents; their text and pictures are the query (both when both are there).
            num_retrieved: at most so many each, 0 or more.
            exclude: for each query, ids that may not be returned (in training: its own).
        """
        if num_retrieved < 0:
            raise DataError("num_retrieved", f"is {num_retrieved}", "use 0 or more")
        banned = [frozenset[str]()] * len(queries) if exclude is None else list(exclude)
        assert len(banned) == len(queries)
        if num_retrieved == 0 or not queries:
            return [[] for _ in queries]
        results = self._retrieve(queries, num_retrieved, banned)
        for found, ids in zip(results, banned, strict=True):
            assert len(found) <= num_retrieved
            assert not any(result.id in ids for result in found)
        return results
