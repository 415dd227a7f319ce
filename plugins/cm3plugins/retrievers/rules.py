"""Search by vectors, then choose among the results by the rules of `strategy.py`.

Legend: Q searches, W results of each, M documents of the memory, E dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cm3core.document import Document
from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3core.interfaces.reach import TEXT, Outside
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig
from cm3plugins.retrievers.memory_vectors import AT_ONCE
from cm3plugins.retrievers.strategy import (
    QUERY_PARTS,
    FloatArray,
    Ranking,
    interleaved,
    preferred_first,
    query_parts,
    ranked,
    take,
)

#: Extra results of a search, so that a tie at the cut-off or a skipped document rarely needs a
#: second search.
_MARGIN = 8


@dataclass(kw_only=True)
class RuleConfig(RetrieverConfig):
    """Base config of retrievers that search by vectors: the rules of CM3leon section 2.1.

    Each rule can be switched off.

    Args:
        query: part of the query document to embed: "text", "image", "both" (averaged, like documents
            of the memory) or "union" (the paper's: results by text and by image in turn, without
            duplicates); a query without that part is embedded by the other one. The default is the
            part that a prompt for a picture has: a training picture that helps to find its own
            context leaks into it (RA-CM3 queries with one part only).
        compare: part of the memory's documents to compare with: "both": text and picture averaged (the
            paper's), or "same": texts with texts, pictures with pictures, which finds more if the
            embedder's texts and pictures are far apart. A memory bank or a database stores one vector per
            document, of both, and always compares with that.
        parts: with compare "same", a picture of several objects is also searched by its parts, at most this
            many: those separated by empty rows and columns, if they match the memory better than the whole
            picture. The text of each part's nearest document and the part's box are then prepended. 0: never.
            A memory bank or a database is always searched by whole pictures.
        max_similarity: skip documents more similar to the query; None skips none. The paper skips
            those above 0.9 as near-duplicates, for CLIP and photographs. In drawings of few concepts
            the useful documents (the same object in another style) are just the most similar ones, so
            the default is off.
        min_similarity: drop documents less similar to the query; None keeps all.
        max_redundancy: skip documents more similar than this to one already taken (paper: 0.9); None
            skips none.
        prefer_both: rank documents with both text and a picture before all others.
        search_depth: consider at most this many results of a search, even if fewer documents than
            wanted remain.
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
        """Check the query part, the thresholds (cosines that leave something) and the counts."""
        super().check()
        if self.query not in QUERY_PARTS:
            raise RecipeError(
                "retriever.query",
                f"is {self.query!r}; {close_match(self.query, QUERY_PARTS)}",
                "use one of these",
            )
        for name in ("max_similarity", "min_similarity", "max_redundancy"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise RecipeError(
                    f"retriever.{name}",
                    f"is {value}, and a similarity is a cosine",
                    "use -1 to 1, or null",
                )
        if self.parts and (self.compare != "same" or self.query == "both"):
            raise RecipeError(
                "retriever.parts",
                f"is {self.parts}, and a part of a picture can only be compared with pictures",
                "add retriever.compare=same and retriever.query=text, or use 0",
            )
        if (
            self.max_similarity is not None
            and self.min_similarity is not None
            and self.max_similarity < self.min_similarity
        ):
            raise RecipeError(
                "retriever.max_similarity",
                "is below min_similarity, so that nothing could be found",
                "raise one or lower the other",
            )


class RuleRetriever(Retriever):
    """The rules, applied to a search that a subclass defines.

    Args:
        config: the rules.
        memory: M documents.
        embedder: embeds the queries.
        unreadable: documents without a vector, which are never found.
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
        """Unit vectors float32 [N, E] of the queries; `parts`: see `_search`."""
        return self._embedder.embed_documents(documents)

    @abstractmethod
    def _search(
        self, vectors_QE: FloatArray, width: int, parts_Q: Sequence[str]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        """The best documents of each search, as `VectorIndex.search`; `parts_Q`: what of the query each
        vector is of, "text" or "image"."""

    @abstractmethod
    def _vector(self, index: int) -> FloatArray:
        """The unit vector of a retrieved document, float32 [E]."""

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
        first = np.cumsum([0, *map(len, parts)]).tolist()  # where each query's searches begin
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
        """At most `number` documents that the rules keep, and whether a longer search can't find more."""
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
