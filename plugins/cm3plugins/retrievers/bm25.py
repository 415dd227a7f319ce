"""`bm25`: documents that share words with the query's text, by the package bm25s.

Pictures are ignored.

Legend: M documents of the memory.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, text_of
from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig

#: Scores are rounded to this many digits, so that documents with equal words have equal scores.
_DIGITS = 5
_WORD = re.compile(r"\w+")


@dataclass(kw_only=True)
class BM25RetrieverConfig(RetrieverConfig):
    """Documents that share words with the query (BM25 as Lucene computes it).

    For ablations and for text-only data. Words are runs of letters and digits, case-insensitive;
    there is no stemming and there are no stop words.

    Args:
        k1: term-frequency saturation; 0: repetitions of a word don't count.
        b: strength of the penalty for long documents, 0..1.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k1": (-1e30, 1e6)}

    k1: float = 1.5
    b: float = 0.75

    def check(self) -> None:
        """Check the ranges of k1 and b."""
        super().check()
        if not 0 <= self.k1 < float("inf"):
            raise RecipeError("retriever.k1", f"is {self.k1}", "use 0 or more; usual is 1.2 to 2")
        if not 0 <= self.b <= 1:
            raise RecipeError("retriever.b", f"is {self.b}", "use 0..1; usual is 0.75")

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> BM25Retriever:
        """Index the memory's texts; `embedder` is not used."""
        return BM25Retriever(self, memory)


class BM25Retriever(Retriever):
    """Search by words.

    A document that shares no word with the query is never found; a query without text finds
    nothing.

    Args:
        config: BM25's parameters.
        memory: M documents.
    """

    def __init__(self, config: BM25RetrieverConfig, memory: DocumentSource) -> None:
        import bm25s

        self._memory = memory
        self._word_ids: dict[str, int] = {}
        texts = [
            [
                self._word_ids.setdefault(word, len(self._word_ids))
                for word in words_of(text_of(memory.document(index)))
            ]
            for index in range(len(memory))
        ]
        self._engine: Any = None
        if self._word_ids:  # bm25s can't index an empty vocabulary
            self._engine = bm25s.BM25(k1=config.k1, b=config.b, method="lucene", backend="numpy")
            self._engine.index((texts, self._word_ids), show_progress=False)

    @property
    def memory(self) -> DocumentSource:
        """The documents that results index."""
        return self._memory

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        return [
            self._found(query, num_retrieved, names)
            for query, names in zip(queries, exclude, strict=True)
        ]

    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        # float sums depend on their order, which must not depend on the memory
        words = sorted(set(words_of(text_of(query))))
        known = [self._word_ids[word] for word in words if word in self._word_ids]
        if not known:
            return []
        scores_M: npt.NDArray[np.float64] = np.round(
            self._engine.get_scores_from_ids(known).astype(np.float64), _DIGITS
        )
        sharing = np.flatnonzero(scores_M > 0)
        results: list[Retrieved] = []
        for index in sharing[np.lexsort((sharing, -scores_M[sharing]))].tolist():
            if len(results) == number:
                break
            if not self.is_excluded(index, exclude):
                results.append(Retrieved(index, self._memory.id(index), float(scores_M[index])))
        return results


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared.

    >>> words_of("Red apple, NOTO style")
    ['red', 'apple', 'noto', 'style']
    """
    return _WORD.findall(text.casefold())
