"""`bm25`: retrieves documents that share words with the query's text.

Pictures are ignored.

Legend: M documents of the memory, C compared documents, V distinct words, N words in total, P (word, document) pairs.
With `terms: phrases` a phrase counts as one more word.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import islice
from typing import Any, ClassVar, Literal, TypeAlias
from unicodedata import category

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
#: Numbers of adjacent words that are a phrase.
_PHRASES = (2, 3)
#: How much a term counts that a document before contains: little, but of two documents of the same thing the one in the
#: style of the query is better. It is chosen from so many that have most of what is uncovered.
_COVERED, _NEAR = 0.25, 64
#: What no term is and no phrase begins or ends with: the stop words of Lucene's EnglishAnalyzer.
_STOP_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
        "to was will with",
    )
)
#: Documents that are worth comparing at once: fewer take as long.
_AT_ONCE = 256
#: What joins two words if it alone stands between them, although it is punctuation: "t-shirt", "artist's".
_JOINTS = frozenset("-'’")
#: The documents that contain a word, in order, and the word's contribution to each one's score.
Postings: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]
#: From candidates and their scores: those that score above 0, with their scores, best first.
_BestFirst: TypeAlias = Callable[[npt.NDArray[Any], npt.NDArray[Any]], Iterator[tuple[int, float]]]


@dataclass(kw_only=True)
class BM25RetrieverConfig(RetrieverConfig):
    """Retrieves documents that share words with the query (BM25 as in Lucene).

    Words are runs of letters and digits, case-insensitive.

    Args:
        k1: term-frequency saturation; 0 ignores repetitions of a word.
        b: strength of the penalty for long documents, 0..1.
        terms: what documents share with the query: "words", or "phrases": words in the singular, and runs of two or
            three adjacent ones without punctuation between them, which tell "police car" from "car"; no words such as
            "the" and "of".
        coverage: for queries that name several things: choose documents one by one, each above all for the terms that no
            document before it contains; the others count a quarter. The sum is multiplied by the share of the document's own
            terms that the query contains, so that "a pen at the left" finds a pen rather than a left arrow. When nothing is
            left to cover, the others follow (not `preferred`), by all terms. Equal documents are chosen by
            their scores for all terms, then by their ids. In training, documents are drawn from `num_ranks` results at
            random: make it `num_retrieved` to get those that were chosen together.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"k1": (-1e30, 1e6)}
    later_keys: ClassVar[tuple[str, ...]] = ("terms", "coverage")

    k1: float = 1.5
    b: float = 0.75
    terms: Literal["words", "phrases"] = "words"
    coverage: bool = False

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
        self._terms_of = terms_of if config.terms == "phrases" else words_of
        texts = map(self._terms_of, read_texts(memory))
        self._word_ids, self._postings = indexed(texts, config)
        self._ranks_M: npt.NDArray[Any] | None = None
        if config.coverage:
            self._ranks_M = np.empty(len(memory), np.int64)
            self._ranks_M[sorted(range(len(memory)), key=memory.id)] = np.arange(len(memory))
            #: The score of each document for a query that is the document itself.
            self._own_M = np.zeros(len(memory))
            for _, word_id in sorted(self._word_ids.items()):
                documents, values = self._postings[word_id]
                self._own_M[documents] += values

    def _found(self, query: Document, number: int, exclude: Collection[str]) -> list[Retrieved]:
        # a float sum depends on its order, which must not depend on the memory
        words = sorted(set(self._terms_of(text_of(query))))
        known = [self._word_ids[word] for word in words if word in self._word_ids]
        postings = [self._postings[word_id] for word_id in known]
        covering: dict[int, float] = {}

        # lazily: an exclusion may read the document
        @cache
        def is_allowed(index: int) -> bool:
            return not self.is_excluded(index, exclude)

        def is_free(index: int) -> bool:
            return index not in covering and is_allowed(index)

        score = partial(self._score, postings, postings)
        if self._ranks_M is not None:
            best_first = partial(_covering_first, self._ranks_M, postings)
            uncovered, least = postings, math.inf
            while len(covering) < number and (
                near := _search(
                    uncovered,
                    _NEAR,
                    is_free,
                    best_first,
                    partial(self._score, postings, uncovered),
                )
            ):
                indices_C = np.asarray([index for index, _ in near], np.int32)
                order_C = np.argsort(indices_C)
                both_C = np.asarray([one for _, one in near])
                both_C[order_C] += _COVERED * score(indices_C[order_C])
                place = int(both_C.argmax())  # the first of ties
                index = int(indices_C[place])
                least = min(least, round(float(both_C[place]), DIGITS))
                covering[index] = least
                uncovered = [one for one in uncovered if not _contains(one[0], index)]
        rest = _search(postings, number - len(covering), is_free, _best_first, score)
        return [
            *(self._result(*one, True) for one in covering.items()),
            *(self._result(*one, not covering) for one in rest),
        ]

    def _score(
        self,
        postings: Sequence[Postings],
        asked: Sequence[Postings],
        candidates_C: npt.NDArray[Any],
    ) -> npt.NDArray[Any]:
        """The scores for the words `asked`; with coverage, times the share of a document's own words among `postings`."""
        scores_C = _scores(candidates_C, asked)
        if self._ranks_M is None:
            return scores_C
        whole_C = scores_C if asked is postings else _scores(candidates_C, postings)
        shares_C = np.round(whole_C / self._own_M[candidates_C], DIGITS)
        return np.asarray(scores_C * shares_C.clip(10**-DIGITS, 1.0))

    def _result(self, index: int, score: float, preferred: bool) -> Retrieved:
        return Retrieved(index, self._memory.id(index), score, preferred=preferred)


def _search(
    postings: Sequence[Postings],
    number: int,
    is_free: Callable[[int], bool],
    best_first: _BestFirst,
    score: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> list[tuple[int, float]]:
    """Return the exact best free documents and their scores, reading the postings of as few words as possible.

    A word that occurs in half of the memory adds little to any score. So documents are collected word by
    word, starting with the word that can add most, until no document with only the remaining words can
    beat the worst one collected. `score`: of candidates, at most the sum over the words.
    """
    largest = [float(values.max()) for _, values in postings]
    order = np.argsort(-np.asarray(largest), kind="stable").tolist()
    results: list[tuple[int, float]] = []
    found_M = np.zeros(1 + max((int(one[-1]) for one, _ in postings), default=-1), bool)
    size, enough = 0, _AT_ONCE
    for num_words in range(1, len(order) + 1) if number else ():
        documents, _ = postings[order[num_words - 1]]
        found_M[documents] = True
        size += len(documents)
        if num_words < len(order) and size < enough:
            continue
        enough = 2 * size
        left = sum(largest[place] for place in order[num_words:])
        candidates_C = np.flatnonzero(found_M).astype(np.int32)
        scores_C = score(candidates_C)
        certain = left + 2 * 10**-DIGITS
        if num_words < len(order) and np.count_nonzero(scores_C > certain) < number:
            continue
        free = (one for one in best_first(candidates_C, scores_C) if is_free(one[0]))
        results = list(islice(free, number))
        if len(results) == number and results[-1][1] > certain:
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
        # the shorter one is looked up in the longer one
        if len(documents) < len(candidates_C):
            places = np.minimum(np.searchsorted(candidates_C, documents), len(candidates_C) - 1)
            there = candidates_C[places] == documents
            scores_C[places[there]] += values[there]
        else:
            places = np.minimum(np.searchsorted(documents, candidates_C), len(documents) - 1)
            there = documents[places] == candidates_C
            scores_C[there] += values[places[there]]
    return np.round(scores_C.astype(np.float64), DIGITS)


def _best_first(
    candidates_C: npt.NDArray[Any], scores_C: npt.NDArray[Any]
) -> Iterator[tuple[int, float]]:
    """Yield candidates with a score above 0 and their scores, best first; ties in the memory's order."""
    for place in np.lexsort((candidates_C, -scores_C)).tolist():
        if scores_C[place] > 0:
            yield int(candidates_C[place]), float(scores_C[place])


def _covering_first(
    ranks_M: npt.NDArray[Any],
    postings: Sequence[Postings],
    candidates_C: npt.NDArray[Any],
    scores_C: npt.NDArray[Any],
) -> Iterator[tuple[int, float]]:
    """Like `_best_first`, but ties by their scores for all `postings`, then by their ranks.

    What is chosen next depends on a choice among ties, so it must not depend on the memory's order. Few are wanted of
    many, so only ties are sorted.
    """
    while len(candidates_C) and (score := scores_C.max()) > 0:
        best = scores_C == score
        ties = candidates_C[best]
        if len(ties) > 1:
            ties = ties[np.lexsort((ranks_M[ties], -_scores(ties, postings)))]
        for index in ties.tolist():
            yield index, float(score)
        candidates_C, scores_C = candidates_C[~best], scores_C[~best]


def _contains(documents: npt.NDArray[Any], index: int) -> bool:
    place = int(np.searchsorted(documents, index))
    return place < len(documents) and int(documents[place]) == index


def words_of(text: str) -> list[str]:
    """Split a text into words, normalised for comparison.

    >>> words_of("Red apple, NOTO style")
    ['red', 'apple', 'noto', 'style']
    """
    return _WORD.findall(text.casefold())


def _singular(word: str) -> str:
    """A word without the ending of a plural, after Harman's S-stemmer ("How effective is suffixing?", JASIS 1991).

    >>> [_singular(one) for one in ("cars", "cherries", "foxes", "glass", "bus", "as")]
    ['car', 'cherry', 'fox', 'glass', 'bus', 'as']
    """
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses", "zes")) else word[:-1]


def terms_of(text: str) -> list[str]:
    """Split a text into its words, in the singular, and its phrases: the runs of two and three words within a clause that
    neither begin nor end with a stop word.

    Clauses end at punctuation, symbols and line ends, except for a hyphen or an apostrophe between two words.

    >>> terms_of("Red t-shirts, noto"), terms_of("the ace of hearts")
    (['red', 't', 'shirt', 'noto', 'red t', 't shirt', 'red t shirt'], ['ace', 'heart', 'ace of heart'])
    """
    folded = text.casefold()
    clauses: list[list[str]] = [[]]
    end = 0
    for match in _WORD.finditer(folded):
        if _ends_clause(folded[end : match.start()]):
            clauses.append([])
        clauses[-1].append(_singular(match[0]))
        end = match.end()
    return [
        " ".join(run)
        for length in (1, *_PHRASES)
        for words in clauses
        for start in range(len(words) - length + 1)
        if _STOP_WORDS.isdisjoint(((run := words[start : start + length])[0], run[-1]))
    ]


@lru_cache(maxsize=4096)
def _ends_clause(gap: str) -> bool:
    """Whether what stands between two words ends a clause; marks, which words of some scripts consist of, do not."""
    return gap not in _JOINTS and any(one == "\n" or category(one)[0] in "PS" for one in gap)
