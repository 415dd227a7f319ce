"""`dense`: maximum inner product search over document vectors by faiss (CM3leon section 2.1); and the base
of vector retrievers.

An index finds candidates, and the rules in `rules.py` choose among them. An engine's config derives from
`VectorRetrieverConfig`, and its `open_index` defines how vectors are searched.

Legend: Q searches, W results of each, M documents of the memory, E dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from cm3core.document import Codes, Document, Image, text_of
from cm3core.errors import RecipeError
from cm3core.interfaces.dataset import DocumentSource
from cm3core.interfaces.embedder import Embedder
from cm3plugins.retrievers.index.opening import IndexOptions
from cm3plugins.retrievers.memory_vectors import memory_vectors, open_kept, vectors_file
from cm3plugins.retrievers.rules import FloatArray, RuleConfig, RuleRetriever

if TYPE_CHECKING:
    from cm3plugins.retrievers.index import VectorIndex
    from cm3run.bank import VectorRows


@dataclass(kw_only=True)
class VectorRetrieverConfig(RuleConfig):
    """Base config of vector retrievers: the rules, and an index."""

    def open_index(
        self, vectors: VectorRows, folder: Path | None, fingerprint: str | None
    ) -> VectorIndex:
        """Open an index over the memory's vectors.

        Args:
            vectors: unit vectors of the memory's documents.
            folder: where an index may be stored: next to a bank, otherwise in the cache; None: nowhere.
            fingerprint: fingerprint of the vectors, if known.
        """
        raise NotImplementedError

    def build(self, memory: DocumentSource, embedder: Embedder | None) -> RuleRetriever:
        """Open the index over the memory's vectors.

        The vectors come from the memory bank, from the cache, or from the embedder.

        Raises:
            RecipeError: the recipe has no embedder.
            DataError: the bank's vectors come from another embedder.
        """
        from cm3run.bank import MemoryBank, VectorRows

        if embedder is None:
            raise RecipeError(
                "retriever",
                "searches by vectors and needs an embedder, but the recipe has none",
                "add embedder=light_encoder",
            )
        if isinstance(memory, MemoryBank):
            memory.check_embedder(embedder)
            index = self.open_index(memory.vectors, memory.folder / "index", memory.fingerprint)
            return VectorRetriever(self, memory, embedder, index)
        if self.compare == "same":
            from cm3plugins.retrievers.same_part import SamePartRetriever

            return SamePartRetriever(self, memory, embedder, self.open_index)
        path = vectors_file(memory, embedder) if self.cache else None
        vectors_ME = memory_vectors(memory, embedder, cache=self.cache, path=path)
        index = open_kept(self.open_index, VectorRows.of(vectors_ME), path)
        return VectorRetriever(
            self, memory, embedder, index, unreadable=np.flatnonzero(~vectors_ME.any(1)).tolist()
        )


class VectorRetriever(RuleRetriever):
    """The rules, applied to the results of an index.

    Args:
        config, memory, embedder, unreadable: see `RuleRetriever`.
        index: index over unit vectors of the memory's documents, from the same embedder.
    """

    def __init__(
        self,
        config: RuleConfig,
        memory: DocumentSource,
        embedder: Embedder,
        index: VectorIndex,
        unreadable: Collection[int] = (),
    ) -> None:
        assert index.vectors.shape == (len(memory), embedder.dimension), (
            "vectors of another memory or embedder"
        )
        super().__init__(config, memory, embedder, unreadable)
        self._index = index

    @property
    def index(self) -> VectorIndex:
        """The index that finds the candidates."""
        return self._index

    def exact(self) -> VectorRetriever:
        """Return a retriever with the same rules over an exact search."""
        from cm3plugins.retrievers.index.base import FlatIndex

        if self._index.exact:
            return self
        return VectorRetriever(
            self._config,
            self._memory,
            self._embedder,
            FlatIndex(self._index.vectors),
            self._unreadable,
        )

    @cached_property
    def _has_both(self) -> npt.NDArray[np.bool_]:
        """Whether each document has text and a picture, bool [M]."""
        from cm3run.bank import MemoryBank

        if isinstance(self._memory, MemoryBank):
            both: npt.NDArray[np.bool_] = self._memory.has_text & self._memory.has_image
            return both
        documents = map(self._memory.document, range(len(self._memory)))
        return np.fromiter((has_both(document) for document in documents), bool, len(self._memory))

    def _search(
        self, vectors_QE: FloatArray, width: int, parts_Q: Sequence[str]
    ) -> tuple[FloatArray, npt.NDArray[np.int64]]:
        return self._index.search(vectors_QE, width)

    def _vector(self, index: int) -> FloatArray:
        return self._index.vectors.row(index)

    def _is_preferred(self, index: int) -> bool:
        return bool(self._has_both[index])


def has_both(document: Document) -> bool:
    """Whether a document holds text and a picture."""
    return bool(text_of(document)) and any(
        isinstance(segment, (Image, Codes)) for segment in document
    )


@dataclass(kw_only=True)
class DenseRetrieverConfig(IndexOptions, VectorRetrieverConfig):
    """Retrieves the nearest document vectors by inner product of unit vectors (cosine), exact or approximate.

    The rules are described in `VectorRetrieverConfig`, the index in `IndexOptions`.
    """

    is_default: ClassVar[bool] = True

    def check(self) -> None:
        """Check the keys of the rules and of the index."""
        super().check()
        self.check_index()

    def open_index(
        self, vectors: VectorRows, folder: Path | None, fingerprint: str | None
    ) -> VectorIndex:
        """Open an exact index for a small memory, otherwise one built once and kept next to the bank."""
        from cm3plugins.retrievers.index import open_index

        return open_index(vectors, self, folder, fingerprint)
