"""`usearch`: like `dense`, with the HNSW graph of the package usearch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cm3plugins.retrievers.dense import VectorRetrieverConfig

if TYPE_CHECKING:
    from cm3plugins.retrievers.index import VectorIndex
    from cm3run.bank import VectorRows


@dataclass(kw_only=True)
class UsearchRetrieverConfig(VectorRetrieverConfig):
    """Retrieves the nearest document vectors with usearch (`pip install 'cm3leon[usearch]'`).

    The rules are described in `VectorRetrieverConfig`.

    Args:
        connectivity: links per node of the graph.
        expansion_add: size of the candidate list while building.
        expansion_search: size of the candidate list of a search. None: measured when the graph is
            built.
        num_candidates: number of best results by approximate score that are re-ranked by exact
            score.
    """

    packages: ClassVar[Mapping[str, str]] = {"usearch": "pip install 'cm3leon[usearch]'"}
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "connectivity": (2, 2**10),
        "expansion_add": (1, 2**31 - 1),
        "expansion_search": (1, 2**31 - 1),
        "num_candidates": (1, 2**31 - 1),
    }

    connectivity: int = 32
    expansion_add: int = 128
    expansion_search: int | None = None
    num_candidates: int = 128

    def open_index(
        self, vectors: VectorRows, folder: Path | None, fingerprint: str | None
    ) -> VectorIndex:
        """Open a graph, which is built once and kept next to the bank. Raises `MissingPackageError` without usearch."""
        self.check_machine("cpu")
        from cm3plugins.retrievers.index import open_engine
        from cm3plugins.retrievers.index.base import FlatIndex
        from cm3plugins.retrievers.usearch_engine import UsearchEngine

        if not len(vectors):
            return FlatIndex(vectors)
        engine = UsearchEngine(vectors, self.connectivity, self.expansion_add)
        return open_engine(engine, self.expansion_search, self.num_candidates, folder, fingerprint)
