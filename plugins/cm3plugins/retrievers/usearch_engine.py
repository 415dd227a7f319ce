"""usearch's HNSW graph as an engine of vector indexes, on bfloat16 vectors.

Legend: Q queries, C candidates per query, M rows, E dimension.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from usearch.index import Index

from cm3plugins.indexes.kept import check_whole
from cm3plugins.indexes.threads import num_threads
from cm3plugins.retrievers.index.approximate import Engine, check_finite
from cm3plugins.retrievers.index.base import NO_ROW, FloatArray, RowArray
from cm3run.progress import estimated_bar

if TYPE_CHECKING:
    from cm3run.bank import VectorRows

#: Rows added at a time.
_AT_ONCE = 2048


class UsearchEngine(Engine):
    """usearch's HNSW graph.

    Args:
        vectors: M rows.
        connectivity, expansion_add: see `UsearchRetrieverConfig`.
    """

    name, setting_key, least_setting = "usearch", "expansion_search", 32

    def __init__(self, vectors: VectorRows, connectivity: int, expansion_add: int) -> None:
        super().__init__(vectors)
        self.connectivity, self.expansion_add = connectivity, expansion_add

    @property
    def sizes(self) -> dict[str, Any]:
        """Links per node, and size of the candidate list while building."""
        return {"connectivity": self.connectivity, "expansion_add": self.expansion_add}

    @property
    def num_bytes(self) -> int:
        """Rows and links (twice as many in the lowest layer)."""
        num_rows, dimension = self.vectors.shape
        return num_rows * (2 * dimension + 4 * 2 * self.connectivity + 24)

    @property
    def most_setting(self) -> int:
        """The number of nodes."""
        return len(self.vectors)

    def build(self, progress: bool) -> Any:
        """Add rows block by block."""
        num_rows, dimension = self.vectors.shape
        native = Index(
            ndim=dimension,
            metric="ip",
            dtype="bf16",
            connectivity=self.connectivity,
            expansion_add=self.expansion_add,
        )
        with estimated_bar(
            f"building an index {self.name!r}",
            total=num_rows,
            unit="document",
            disable=not progress,
            note="done once, then stored",
        ) as advance:
            # small blocks: the graph is slow to build
            for start, block_nE in self.vectors.blocks(_AT_ONCE):
                rows_n = np.arange(start, start + len(block_nE))
                check_finite(block_nE, rows_n)
                native.add(rows_n, np.ascontiguousarray(block_nE), threads=num_threads())
                advance(len(block_nE))
        return native

    def candidates(
        self, native: Any, setting: int, queries_QE: FloatArray, number: int
    ) -> RowArray:
        """Return the best rows by usearch's scores of its compressed vectors."""
        native.expansion_search = max(setting, number)
        found = native.search(queries_QE, number, threads=num_threads())
        keys_QC = np.asarray(found.keys).reshape(len(queries_QE), -1).astype(np.int64)
        # results of a single query have no counts
        counts_Q = np.atleast_1d(getattr(found, "counts", keys_QC.shape[1]))
        rows_QC = np.full((len(queries_QE), number), NO_ROW, np.int64)
        rows_QC[:, : keys_QC.shape[1]] = np.where(
            np.arange(keys_QC.shape[1]) < counts_Q[:, None], keys_QC, NO_ROW
        )
        return rows_QC

    def write(self, native: Any, path: Path) -> None:
        """Write usearch's file format."""
        native.save(str(path))
        check_whole(path, native.serialized_length)

    def read(self, path: Path) -> Any:
        """Map a file into memory."""
        native = Index.restore(str(path), view=True)
        if native is None or (len(native), native.ndim) != self.vectors.shape:
            raise ValueError("does not hold a graph of these rows")
        return native
