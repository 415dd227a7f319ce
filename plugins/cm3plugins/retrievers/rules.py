"""Search by vectors, then choose the documents to prepend to a query: the rules of CM3leon section 2.1.

Each rule is a function:

    relevance     `ranked`: by score
    modality      `preferred_first`: documents with both text and a picture before others
    diversity     `is_redundant`: no near-duplicates of documents already taken (a limit on the score excludes those of the query)
    the query     `query_parts`: its text, its picture, or both, with `interleaved` results

A search returns only the start of the full ranking. Every rule keeps only results that this start makes
certain, so a longer search never changes the results of a shorter one.

Legend: Q searches, W results per search, C candidates among them, n documents taken, M documents of the memory, E
dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cm3core.document import Document, Image, Text
from cm3core.errors import DataError, RecipeError, close_match
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3plugins.retrievers.memory_vectors import AT_ONCE

QUERY_PARTS = ("text", "image", "both", "union")

#: Scores are rounded to this many digits: the last bits depend on how many queries share a matrix
#: product.
DIGITS = 6

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A document that may be taken: its `index` in the memory and `score`; other fields as in `Retrieved`."""

    index: int
    score: float
    found_by: str = "text"
    preferred: bool = True


@dataclass(frozen=True)
class Ranking:
    """The result of one search: candidates, best first.

    Args:
        candidates: the certain start of the full ranking.
        complete: whether that is the full ranking.
    """

    candidates: tuple[Candidate, ...]
    complete: bool


def query_parts(query: Document, part: str) -> list[tuple[str, Document]]:
    """Split a query into the parts to search by, as ("text" or "image", document).

    The name becomes `found_by` in the results.

    Args:
        query: a document; parts that it lacks are left out.
        part: one of `QUERY_PARTS`: "text"; "image"; "both", averaged, like a document of the memory;
            "union", one search by text and one by pictures (paper section 2.1).

    Raises:
        DataError: the query has neither text nor a picture.

    >>> [found_by for found_by, _ in query_parts((Text("red apple"),), "union")]
    ['text']
    """
    texts = tuple(segment for segment in query if isinstance(segment, Text) and segment.text)
    images = tuple(segment for segment in query if isinstance(segment, Image))
    if not texts and not images:
        raise DataError(
            "retrieval query",
            "has neither text nor a picture",
            "add one of them, or use num_retrieved=0",
        )
    parts: list[tuple[str, Document]] = [("text", texts), ("image", images)]
    if part == "both" and texts and images:
        return [("text", (*texts, *images))]
    there = [one for one in parts if one[1]]
    return there if part == "union" else [one for one in there if one[0] == part] or there[:1]


def ranked(
    scores_W: FloatArray,
    rows_W: npt.NDArray[np.int64],
    *,
    whole: bool,
    found_by: str = "text",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Ranking:
    """Rank the results of a search by rounded score, ties in the memory's order.

    If the search did not cover the whole memory, the last score is dropped: documents beyond it may
    have the same score.

    Args:
        scores_W, rows_W: best first; a row below 0 means no result, and none follows.
        whole: the search covered the whole memory.
        found_by: "text" or "image".
        minimum: drop documents less similar than this.
        maximum: drop documents more similar than this: near-duplicates of the query (paper: 0.9).
    """
    there = rows_W >= 0
    whole = whole or not there.all()
    scores: Any = np.round(scores_W[there].astype(np.float64), DIGITS)
    rows = rows_W[there]
    if minimum is not None and len(scores) and scores[-1] < minimum:
        whole = True  # the rest is even less similar
    keep = np.ones(len(scores), bool) if whole else scores > scores[-1]
    if minimum is not None:
        keep &= scores >= minimum
    if maximum is not None:
        keep &= scores <= maximum
    order = np.lexsort((rows[keep], -scores[keep]))
    pairs = zip(rows[keep][order].tolist(), scores[keep][order].tolist(), strict=True)
    return Ranking(tuple(Candidate(row, score, found_by) for row, score in pairs), whole)


def preferred_first(ranking: Ranking, is_preferred: Callable[[int], bool]) -> Ranking:
    """Put preferred candidates first, otherwise keeping the order.

    The others are included only if the ranking is complete, since preferred ones may still follow.

    Args:
        ranking: by relevance.
        is_preferred: called with indices into the memory.
    """
    first = [candidate for candidate in ranking.candidates if is_preferred(candidate.index)]
    chosen = {candidate.index for candidate in first}
    rest = [
        replace(candidate, preferred=False)
        for candidate in ranking.candidates
        if candidate.index not in chosen
    ]
    return Ranking((*first, *(rest if ranking.complete else ())), ranking.complete)


def interleaved(rankings: Sequence[Ranking]) -> Ranking:
    """Take the best candidate of each ranking, then the second of each, and so on.

    A document that occurs twice keeps its first position.

    >>> one, two = (Ranking(tuple(Candidate(index, 1.0) for index in places), True) for places in ([7, 3, 5], [3, 9]))
    >>> [candidate.index for candidate in interleaved([one, two]).candidates]
    [7, 3, 9, 5]
    """
    if len(rankings) == 1:
        return rankings[0]
    certain = min(
        (len(ranking.candidates) for ranking in rankings if not ranking.complete), default=None
    )
    lists = [ranking.candidates[:certain] for ranking in rankings]
    merged: dict[int, Candidate] = {}
    for place in range(max(map(len, lists))):
        for candidates in lists:
            if place < len(candidates):
                merged.setdefault(candidates[place].index, candidates[place])
    return Ranking(tuple(merged.values()), certain is None)


def is_redundant(
    vector_E: FloatArray, taken_nE: Sequence[FloatArray], max_redundancy: float
) -> bool:
    """Whether a document is more similar than `max_redundancy` (paper: 0.9) to one already taken.

    All vectors have length 1.

    >>> is_redundant(np.float32([1, 0]), [np.float32([0.6, 0.8])], 0.5)
    True
    """
    return bool(taken_nE) and bool(
        (np.round(np.stack(taken_nE) @ vector_E, DIGITS) > max_redundancy).any()
    )


def take(
    candidates: Iterable[Candidate],
    number: int,
    allowed: Callable[[int], bool],
    vector_of: Callable[[int], FloatArray] | None = None,
    max_redundancy: float = 1.0,
) -> list[Candidate]:
    """Take the first `number` allowed candidates; with `vector_of`, skip redundant ones."""
    taken: list[Candidate] = []
    vectors: list[FloatArray] = []
    for candidate in takewhile(lambda _: len(taken) < number, candidates):
        if not allowed(candidate.index):
            continue
        if vector_of is not None:
            vector_E = vector_of(candidate.index)
            if is_redundant(vector_E, vectors, max_redundancy):
                continue
            vectors.append(vector_E)
        taken.append(candidate)
    return taken


#: Number of extra results per search, so that a tie at the cut-off or a skipped document rarely needs a
#: second search.
_MARGIN = 8


@dataclass(kw_only=True)
class RuleConfig(RetrieverConfig):
    """Base config of retrievers that search by vectors: the rules of CM3leon section 2.1.

    Each rule can be switched off.

    Args:
        query: part of the query document to embed: "text", "image", "both" (averaged, like documents
            of the memory) or "union" (as in the paper: results by text and by image in turn, without
            duplicates); a query without that part is embedded by the other one. The default is the
            part that a prompt for a picture has: if a training picture helps to find its own context,
            it leaks into it (RA-CM3 queries with one part only).
        compare: part of the memory's documents to compare with: "both": text and picture averaged (as in the
            paper), or "same": texts with texts, pictures with pictures, which finds more if the embedder's
            texts and pictures are far apart. A memory bank or a database stores one averaged vector per
            document, and always compares with that.
        parts: with compare "same", also search a picture of several objects by its parts, at most this many.
            Parts are separated by empty rows and columns; they are used if they match the memory better than
            the whole picture. The text of each part's nearest document and the part's box are then prepended.
            0: never. A memory bank or a database is always searched by whole pictures.
        max_similarity: skip documents more similar to the query than this; None skips none. The paper skips
            documents above 0.9 as near-duplicates, with CLIP and photographs. With drawings of few concepts
            the most similar documents are the useful ones (the same object in another style), so the
            default is off.
        min_similarity: drop documents less similar to the query than this; None keeps all.
        max_redundancy: skip documents more similar than this to one already taken (paper: 0.9); None
            skips none.
        prefer_both: rank documents with both text and a picture before all others.
        search_depth: maximum number of results of a search to consider, even if fewer documents than
            requested remain.
        cache: store the memory's vectors in the cache folder, keyed by the fingerprints of everything
            that determines them.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "query": TEXT,
    }

    needs: ClassVar[tuple[str, ...]] = ("embedder",)
    query: str = "text"
    compare: Literal["both", "same"] = "both"
    parts: int = 0
    max_similarity: float | None = None
    min_similarity: float | None = None
    max_redundancy: float | None = None
    prefer_both: bool = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "search_depth": (1, 2**31 - 1),
        "parts": (0, 64),
    }

    search_depth: int = 1024
    cache: bool = True

    def check(self) -> None:
        """Check the query part, the thresholds and the counts."""
        super().check()
        if self.query not in QUERY_PARTS:
            raise RecipeError(
                "retriever.query",
                f"is {self.query!r}; {close_match(self.query, QUERY_PARTS)}",
                "use one of them",
            )
        for name in ("max_similarity", "min_similarity", "max_redundancy"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise RecipeError(
                    f"retriever.{name}",
                    f"is {value}, but similarities are cosines",
                    "use -1 to 1, or null",
                )
        if self.parts and (self.compare != "same" or self.query == "both"):
            raise RecipeError(
                "retriever.parts",
                f"is {self.parts}, but parts of a picture can only be compared with pictures",
                "add retriever.compare=same and retriever.query=text, or use 0",
            )
        if (
            self.max_similarity is not None
            and self.min_similarity is not None
            and self.max_similarity < self.min_similarity
        ):
            raise RecipeError(
                "retriever.max_similarity",
                "is below min_similarity, so nothing can be retrieved",
                "raise max_similarity or lower min_similarity",
            )


class RuleRetriever(Retriever):
    """Applies the rules to a search defined by a subclass.

    Args:
        config: the rules.
        memory: M documents.
        embedder: embeds the queries.
        unreadable: documents without a vector, which are never retrieved.
    """

    def __init__(
        self,
        config: RuleConfig,
        memory: DocumentSource,
        embedder: Embedder,
        unreadable: Collection[int] = (),
    ) -> None:
        self._config, self._memory, self._embedder = config, memory, embedder
        self._unreadable = frozenset(unreadable)

    @property
    def memory(self) -> DocumentSource:
        """The documents that results index."""
        return self._memory

    def _embed(self, documents: Sequence[Document], parts: Sequence[str]) -> FloatArray:
        """Return unit vectors float32 [N, E] of the queries; `parts`: see `_search`."""
        return self._embedder.embed_documents(documents)

    @abstractmethod
    def _search(
        self, vectors_QE: FloatArray, width: int, parts_Q: Sequence[str]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """Return the best documents of each search, like `VectorIndex.search`; `parts_Q`: the part of the query
        that each vector embeds, "text" or "image"."""

    @abstractmethod
    def _vector(self, index: int) -> FloatArray:
        """Return the unit vector of a retrieved document, float32 [E]."""

    @abstractmethod
    def _is_preferred(self, index: int) -> bool:
        """Whether a retrieved document has text and a picture."""

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        parts = [query_parts(query, self._config.query) for query in queries]
        asked = [document for own in parts for _, document in own]
        parts_Q = [name for own in parts for name, _ in own]
        vectors_QE = np.concatenate(
            [
                self._embed(asked[start : start + AT_ONCE], parts_Q[start : start + AT_ONCE])
                for start in range(0, len(asked), AT_ONCE)
            ]
        )
        first = np.cumsum([0, *map(len, parts)]).tolist()  # where each query's searches start
        results: list[list[Retrieved]] = [[] for _ in queries]
        pending = list(range(len(queries)))
        width = num_retrieved + max(map(len, exclude)) + _MARGIN
        most = min(len(self._memory), max(width, self._config.search_depth))
        while pending and most:
            width = min(width, most)
            searches = [row for query in pending for row in range(first[query], first[query + 1])]
            found = zip(
                *self._search(vectors_QE[searches], width, [parts_Q[row] for row in searches]),
                strict=True,
            )
            unfinished = []
            for query in pending:
                rankings = [
                    ranked(
                        *next(found),
                        whole=width == most,
                        found_by=found_by,
                        minimum=self._config.min_similarity,
                        maximum=self._config.max_similarity,
                    )
                    for found_by, _ in parts[query]
                ]
                results[query], complete = self._chosen(rankings, num_retrieved, exclude[query])
                if len(results[query]) < num_retrieved and not complete:
                    unfinished.append(query)
            # Too few only if ties or skipped documents used up the margin: search deeper.
            pending, width = unfinished, 4 * width
        return results

    def _chosen(
        self, rankings: Sequence[Ranking], number: int, exclude: Collection[str]
    ) -> tuple[list[Retrieved], bool]:
        """Return at most `number` documents that the rules keep, and whether a longer search can't find more."""
        if self._config.prefer_both:
            rankings = [preferred_first(ranking, self._is_preferred) for ranking in rankings]
        merged = interleaved(rankings)

        def allowed(index: int) -> bool:
            return index not in self._unreadable and not self.is_excluded(index, exclude)

        limit = self._config.max_redundancy
        taken = (
            take(merged.candidates, number, allowed)
            if limit is None
            else take(merged.candidates, number, allowed, self._vector, limit)
        )
        return [
            Retrieved(one.index, self._memory.id(one.index), one.score, one.found_by, one.preferred)
            for one in taken
        ], merged.complete
