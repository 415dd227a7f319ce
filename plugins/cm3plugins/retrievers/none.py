"""`none`: retrieves nothing.

The baseline of retrieval experiments; also used to train without retrieved documents.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cm3core.document import Document
from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig


@dataclass(kw_only=True)
class NoRetrieverConfig(RetrieverConfig):
    """Retrieves no documents for any query.

    Args:
        num_retrieved: must be 0.
    """

    retrieves: ClassVar[bool] = False
    num_retrieved: int = 0

    def check(self) -> None:
        """Reject a recipe that asks this retriever for documents."""
        super().check()
        if self.num_retrieved != 0:
            raise RecipeError(
                "retriever.num_retrieved",
                f"is {self.num_retrieved}, but the retriever 'none' never retrieves",
                "use 0, or another retriever: retriever=dense",
            )

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> NoRetriever:
        """Return the retriever; `embedder` is not used."""
        return NoRetriever(memory)


class NoRetriever(Retriever):
    """Retrieves nothing."""

    def __init__(self, memory: DocumentSource) -> None:
        self._memory = memory

    @property
    def memory(self) -> DocumentSource:
        """The documents of the memory, which are never retrieved."""
        return self._memory

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        return [[] for _ in queries]
