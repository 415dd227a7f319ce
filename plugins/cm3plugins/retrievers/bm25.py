"""`bm25`: retrieves documents that share words with the query's text.

Pictures are ignored.

Legend: M documents of the memory, C compared documents, V distinct words, N words in total, P (word, document) pairs.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, text_of
from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3plugins.retrievers.memory_vectors import read_texts

#: Scores are rounded to this many digits, so that documents with the same words score the same.
DIGITS = 5
_WORD = re.compile(r"\w+")
#: The documents that contain a word, in order, and the word's contribution to each one's score.
Postings: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(kw_only=True)
class BM25RetrieverConfig(RetrieverConfig):
    """Retrieves documents that share words with the query (BM25 as in Lucene).

    For ablations and for text-only data. Words are runs of letters and digits, case-insensitive;
    no stemming, no stop words.

    Args:
        k1: term-frequency saturation; 0 ignores repetitions of a word.
        b: strength of the penalty for long documents, 0..1.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k1": (-1e30, 1e6)}

    k1: float = 1.5
    b: float = 0.75

    def check(self) -> None:
        """Check the ranges of k1 and b."""
        super().check()
        if not 0 <= self.k1 < float("inf"):
            raise RecipeError("retriever.k1", f"is {self.k1}", "use 0 or more; 1.2 to 2 is usual")
        if not 0 <= self.b <= 1:
            raise RecipeError("retriever.b", f"is {self.b}", "use 0..1; 0.75 is usual")

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> BM25Retriever:
        """Index the memory's texts; `embedder` is not used."""
        return BM25Retriever(self, memory)


class QueryByQuery(Retriever):
    """Searches for one query after the other.

    Args:
        memory: M documents.
    """

    def __init__(self, memory: DocumentSource) -> None:
        self._memory = memory

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

    @abstractmethod
    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        """The results of one query."""


class BM25Retriever(QueryByQuery):
    """Search by words.

    A document that shares no word with the query is never found; a query without text finds
    nothing.

    Args:
        config: BM25's parameters.
        memory: M documents.
    """

    def __init__(self, config: BM25RetrieverConfig, memory: DocumentSource) -> None:
        super().__init__(memory)
        texts = map(words_of, read_texts(memory))
        self._word_ids, self._postings = indexed(texts, config)

    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        """Return the exact best documents, reading the postings of as few words as possible.

        A word that occurs in half of the memory adds little to any score. So documents are collected word by
        word, starting with the word that can add most, until no document with only the remaining words can
        beat the worst one collected.
        """
        # a float sum depends on its order, which must not depend on the memory
        words = sorted(set(words_of(text_of(query))))
        known = [self._word_ids[word] for word in words if word in self._word_ids]
        postings = [self._postings[word_id] for word_id in known]
        largest = [float(values.max()) for _, values in postings]
        order = np.argsort(-np.asarray(largest), kind="stable").tolist()
        allowed: dict[int, bool] = {}
        results: list[Retrieved] = []
        for num_words in range(1, len(order) + 1):
            left = sum(largest[place] for place in order[num_words:])
            candidates_C = np.unique(
                np.concatenate([postings[place][0] for place in order[:num_words]])
            )
            scores_C = _scores(candidates_C, postings)
            certain = left + 2 * 10**-DIGITS
            if num_words < len(order) and np.count_nonzero(scores_C > certain) < number:
                continue
            results = []
            for index, score in _best_first(candidates_C, scores_C):
                if len(results) == number:
                    break
                if index not in allowed:
                    allowed[index] = not self.is_excluded(index, exclude)
                if allowed[index]:
                    results.append(Retrieved(index, self._memory.id(index), score))
            if len(results) == number and results[-1].score > certain:
                break
        return results


def indexed(
    texts: Iterable[Sequence[str]], config: BM25RetrieverConfig
) -> tuple[dict[str, int], list[Postings]]:
    """Number the words of texts; return word -> number, and the postings of each."""
    word_ids: dict[str, int] = {}
    ids: list[int] = []
    lengths: list[int] = []
    for words in texts:
        lengths.append(len(words))
        ids += [word_ids.setdefault(word, len(word_ids)) for word in words]
    return word_ids, postings_of(np.asarray(ids), np.asarray(lengths), config)


def postings_of(
    ids_N: npt.NDArray[Any], lengths_M: npt.NDArray[Any], config: BM25RetrieverConfig
) -> list[Postings]:
    """Build the postings of each word from the concatenated word ids of all documents.

    Lucene's variant of BM25: Kamphuis et al. 2020, "Which BM25 do you mean?".
    """
    num_documents = len(lengths_M)
    if not len(ids_N):
        return []
    document_of_N = np.repeat(np.arange(num_documents), lengths_M)
    pairs_P, counts_P = np.unique(ids_N * num_documents + document_of_N, return_counts=True)
    words_P, documents_P = np.divmod(pairs_P, num_documents)
    frequencies_V = np.bincount(words_P)
    # math.log: numpy's depends on the processor in its last digit
    idf_V = np.asarray(
        [math.log(1 + (num_documents - n + 0.5) / (n + 0.5)) for n in frequencies_V.tolist()],
        np.float32,
    )
    penalties_M = config.k1 * ((1 - config.b) + config.b * lengths_M / lengths_M.mean())
    values_P = idf_V[words_P] * (counts_P / (penalties_M[documents_P] + counts_P))
    ends_V = np.cumsum(frequencies_V)[:-1]
    return list(
        zip(
            np.split(documents_P.astype(np.int32), ends_V),
            np.split(values_P.astype(np.float32), ends_V),
            strict=True,
        )
    )


def _scores(candidates_C: npt.NDArray[Any], postings: Sequence[Postings]) -> npt.NDArray[Any]:
    """Return the candidates' scores, float64 [C]: sums over the words in order, rounded."""
    scores_C = np.zeros(len(candidates_C), np.float32)
    for documents, values in postings:
        places_C = np.minimum(np.searchsorted(documents, candidates_C), len(documents) - 1)
        scores_C += np.where(documents[places_C] == candidates_C, values[places_C], np.float32(0))
    return np.round(scores_C.astype(np.float64), DIGITS)


def _best_first(
    candidates_C: npt.NDArray[Any], scores_C: npt.NDArray[Any]
) -> Iterator[tuple[int, float]]:
    """Yield candidates with a score above 0 and their scores, best first; ties in the memory's order."""
    for place in np.lexsort((candidates_C, -scores_C)).tolist():
        if scores_C[place] > 0:
            yield int(candidates_C[place]), float(scores_C[place])


def words_of(text: str) -> list[str]:
    """Split a text into words, normalised for comparison.

    >>> words_of("Red apple, NOTO style")
    ['red', 'apple', 'noto', 'style']
    """
    return _WORD.findall(text.casefold())
