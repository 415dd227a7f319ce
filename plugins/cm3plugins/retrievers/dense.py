"""`dense`: maximum inner product search over the memory's document vectors (CM3leon section 2.1), exact, by faiss.

Config and rules here; the vectors of a memory and their cache in `memory_vectors.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cm3core.document import Document, Image, Text
from cm3core.errors import DataError, RecipeError, close_match
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3core.interfaces.retriever import Retrieved, Retriever, RetrieverConfig

if TYPE_CHECKING:
    import numpy.typing as npt

QUERY_PARTS = ("text", "image", "both")

#: Searched beyond what is wanted, so that exact ties at the border are broken by our order and not by faiss's heap.
_MARGIN = 8
#: Scores are rounded to so many digits: the last bits depend on how many queries share a matrix product.
_DIGITS = 6


@dataclass(kw_only=True)
class DenseRetrieverConfig(RetrieverConfig):
    """Nearest document vectors by inner product of unit vectors (cosine), exact.

    Args:
        query: what of the query document is embedded: "text", "image" or "both" (averaged, like a document of the memory); a
            query that lacks the part named is embedded by the one that it has. The default is what a prompt for a picture
            has: a training picture that helps to find its own context leaks into it (RA-CM3 queries with one part only).
        max_similarity: documents more similar to the query are skipped; None skips none. The paper skips those above 0.9
            as near-duplicates (section 2.1), in CLIP's space over photographs. In drawings of few concepts the useful
            documents, the same thing in another style, are just the most similar ones, so the default is off.
        min_similarity: documents less similar are not worth a place in the context; None takes them all.
        cache: keep the memory's vectors on disk, in the cache folder, under the fingerprints of all that decides them.
    """

    needs: ClassVar[tuple[str, ...]] = ("embedder",)
    query: str = "text"
    max_similarity: float | None = None
    min_similarity: float | None = None
    cache: bool = True

    def check(self) -> None:
        """Refuse an unknown part, thresholds that are no cosines or that leave nothing, and negative counts."""
        if self.query not in QUERY_PARTS:
            raise RecipeError("retriever.query", f"is {self.query!r}; {close_match(self.query, QUERY_PARTS)}", "use one of these")
        if self.num_retrieved < 0:
            raise RecipeError("retriever.num_retrieved", f"is {self.num_retrieved}", "use 0 or more")
        for name, value in (("max_similarity", self.max_similarity), ("min_similarity", self.min_similarity)):
            if value is not None and not -1 <= value <= 1:
                raise RecipeError(f"retriever.{name}", f"is {value}, and a similarity is a cosine", "use -1 to 1, or null")
        if self.max_similarity is not None and self.min_similarity is not None and self.max_similarity < self.min_similarity:
            raise RecipeError("retriever.max_similarity", "is below min_similarity, so that nothing could be found",
                              "raise one or lower the other")

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> DenseRetriever:
        """Embed the memory, or read its vectors from the cache. Raises `RecipeError` without an embedder."""
        from cm3plugins.retrievers.memory_vectors import memory_vectors

        if embedder is None:
            raise RecipeError("retriever", "'dense' needs an embedder and the recipe has none", "add embedder=bi_encoder")
        return DenseRetriever(self, memory, embedder, memory_vectors(memory, embedder, cache=self.cache))


class DenseRetriever(Retriever):
    """Exact search over unit vectors.

    Args:
        config: the rules.
        memory: M documents.
        embedder: embeds the queries.
        vectors: float32 [M, E], unit vectors of the memory's documents, of the same embedder.
    """

    def __init__(self, config: DenseRetrieverConfig, memory: DocumentSource, embedder: Embedder, vectors: VectorArray) -> None:
        import faiss

        assert vectors.shape == (len(memory), embedder.dimension), "vectors of another memory or embedder"
        self._config, self._memory, self._embedder = config, memory, embedder
        self._ids = [memory.id(index) for index in range(len(memory))]
        self._index = faiss.IndexFlatIP(embedder.dimension)
        self._index.add(np.ascontiguousarray(vectors, np.float32))

    @property
    def memory(self) -> DocumentSource:
        """The documents that results index."""
        return self._memory

    def _retrieve(self, queries: Sequence[Document], num_retrieved: int,
                  exclude: Sequence[Collection[str]]) -> list[list[Retrieved]]:
        parts = [query_parts(query, self._config.query) for query in queries]
        vectors = self._embedder.embed_documents([document for document, _ in parts])
        results: list[list[Retrieved]] = [[] for _ in queries]
        pending = list(range(len(queries)))
        width = num_retrieved + max(map(len, exclude)) + _MARGIN
        while pending and len(self._ids):
            width = min(width, len(self._ids))
            scores, indices = self._index.search(vectors[pending], width)
            unfinished = []
            for query, row_scores, row_indices in zip(pending, scores, indices, strict=True):
                results[query] = self._allowed(row_scores, row_indices, exclude[query], parts[query][1])[:num_retrieved]
                exhausted = self._config.min_similarity is not None and row_scores[-1] < self._config.min_similarity
                if len(results[query]) < num_retrieved and not exhausted:
                    unfinished.append(query)
            # Short only where more near-duplicates than the margin were skipped: look further, until all was seen.
            pending = [] if width == len(self._ids) else unfinished
            width *= 4
        return results

    def _allowed(self, scores: npt.NDArray[np.float32], indices: npt.NDArray[np.int64], banned: Collection[str],
                 found_by: str) -> list[Retrieved]:
        """The candidates that the rules leave, best first, exact ties in the memory's order."""
        low = -np.inf if self._config.min_similarity is None else self._config.min_similarity
        high = np.inf if self._config.max_similarity is None else self._config.max_similarity
        rounded: Any = np.round(scores.astype(np.float64), _DIGITS)
        order = np.lexsort((indices, -rounded))
        return [Retrieved(index, self._ids[index], score, found_by)
                for index, score in zip(indices[order].tolist(), rounded[order].tolist(), strict=True)
                if low <= score <= high and self._ids[index] not in banned]


def query_parts(query: Document, part: str) -> tuple[Document, str]:
    """What of a query is embedded, and how the results are said to be found: ("text" | "image").

    >>> query_parts((Text("red apple"),), "image")[1]
    'text'
    """
    texts = tuple(segment for segment in query if isinstance(segment, Text) and segment.text)
    images = tuple(segment for segment in query if isinstance(segment, Image))
    if not texts and not images:
        raise DataError("retrieval query", "has neither text nor a picture", "give it one, or use num_retrieved=0")
    if part == "text" or not images:
        return (texts, "text") if texts else (images, "image")
    if part == "image" or not texts:
        return images, "image"
    return (*texts, *images), "text"
