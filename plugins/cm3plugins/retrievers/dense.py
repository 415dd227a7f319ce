"""`dense`: maximum inner product search over document vectors by faiss (CM3leon section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3plugins.retrievers.index.options import IndexOptions
from cm3plugins.retrievers.vector_retriever import VectorRetrieverConfig

if TYPE_CHECKING:
    from cm3plugins.retrievers.index import VectorIndex
    from cm3run.bank import VectorRows


@dataclass(kw_only=True)
class DenseRetrieverConfig(IndexOptions, VectorRetrieverConfig):
    """Nearest document vectors by inner product of unit vectors (cosine), exact or approximate.

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
        """Open an exact index for a small memory, else one that is built once and kept next to the bank."""
        from cm3plugins.retrievers.index import open_index

        return open_index(vectors, self, folder, fingerprint)
