"""`ivf`, `hnsw` and `pq` by faiss.

    ivf     k-means lists, 8 bits per number (IndexIVFScalarQuantizer)
    pq      k-means lists, product-quantised: one byte per 8 numbers (IndexIVFPQ; Jegou et al. 2011)
    hnsw    a graph over vectors of 8 bits per number (IndexHNSWSQ; Malkov and Yashunin 2016)

Memory while building: the index itself, a block of vectors, and twice a training sample of at most
`SAMPLE_BYTES` (faiss copies it).

Legend: Q queries, C candidates per query, M rows, E dimension, S sampled rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from cm3core.errors import RecipeError
from cm3plugins.indexes.kept import write_faiss
from cm3plugins.indexes.threads import faiss_calls
from cm3plugins.retrievers.index.approximate import BLOCK_BYTES, Engine, check_finite
from cm3plugins.retrievers.index.base import FloatArray, RowArray
from cm3run.progress import estimated_bar

SAMPLE_BYTES = 256 << 20
#: Training rows per k-means list, if available; more rows barely change the lists.
ROWS_PER_LIST = 64
#: One byte of a PQ code represents this many numbers; training its 256 values needs as many rows.
NUMBERS_PER_BYTE, CODE_VALUES = 8, 256
#: Links per node of the graph (twice as many in its lowest layer), and size of the candidate list
#: while building.
LINKS, CONSTRUCTION = 32, 80
SEED = 20_240_229


class FaissEngine(Engine):
    """Base of the three types."""

    #: The faiss class expected in a file.
    native_class: str

    @abstractmethod
    def empty(self) -> Any:
        """An untrained native index without rows."""

    @abstractmethod
    def parameters(self, setting: int) -> Any:
        """Parameters of a search."""

    def build(self, progress: bool) -> Any:
        """Train on a sample, then add rows block by block."""
        num_rows, dimension = self.vectors.shape
        wanted = max(CODE_VALUES, ROWS_PER_LIST * num_lists(num_rows))
        size = min(num_rows, wanted, max(CODE_VALUES, SAMPLE_BYTES // (4 * dimension)))
        sample_S = np.sort(np.random.default_rng(SEED).choice(num_rows, size, replace=False))
        sample_SE = self.vectors.take(sample_S)
        check_finite(sample_SE, sample_S)
        native = self.empty()
        with faiss_calls(dimension):
            native.train(sample_SE)
            del sample_SE
            with estimated_bar(
                f"building an index {self.name!r}",
                total=num_rows,
                unit="document",
                disable=not progress,
                note="done once, then stored",
            ) as advance:
                for start, block_nE in self.vectors.blocks(max(1, BLOCK_BYTES // (4 * dimension))):
                    check_finite(block_nE, np.arange(start, start + len(block_nE)))
                    native.add(block_nE)
                    advance(len(block_nE))
        return native

    def candidates(
        self, native: Any, setting: int, queries_QE: FloatArray, number: int
    ) -> RowArray:
        """Return the best rows by faiss's scores of its compressed vectors."""
        with faiss_calls(self.vectors.dimension):
            rows_QC: RowArray = native.search(queries_QE, number, params=self.parameters(setting))[
                1
            ]
        return rows_QC

    def write(self, native: Any, path: Path) -> None:
        """Write faiss's file format."""
        write_faiss(native, path)

    def read(self, path: Path) -> Any:
        """Map a file into memory."""
        faiss = _faiss()
        native = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        if (
            type(native).__name__ != self.native_class
            or (native.ntotal, native.d) != self.vectors.shape
        ):
            raise ValueError(f"holds a {type(native).__name__} of {native.ntotal} rows")
        return native


class IVFEngine(FaissEngine):
    """k-means lists of vectors of 8 bits per number."""

    name, setting_key, native_class = "ivf", "nprobe", "IndexIVFScalarQuantizer"

    @property
    def sizes(self) -> dict[str, Any]:
        """Number of lists."""
        return {"lists": num_lists(len(self.vectors))}

    @property
    def num_bytes(self) -> int:
        """Rows, their numbers, and the lists' centres."""
        num_rows, dimension = self.vectors.shape
        return num_rows * (self._row_bytes + 8) + 4 * dimension * num_lists(num_rows)

    @property
    def _row_bytes(self) -> int:
        return self.vectors.dimension

    @property
    def most_setting(self) -> int:
        """The number of lists."""
        return num_lists(len(self.vectors))

    def empty(self) -> Any:
        """Return an untrained index that trains on the whole given sample."""
        faiss = _faiss()
        native = faiss.index_factory(
            self.vectors.dimension,
            f"IVF{num_lists(len(self.vectors))},{self._codec}",
            faiss.METRIC_INNER_PRODUCT,
        )
        # faiss warns below 39; the sample's size is deliberate
        native.cp.min_points_per_centroid = 1
        native.cp.max_points_per_centroid = 2 * max(ROWS_PER_LIST, CODE_VALUES)
        return native

    @property
    def _codec(self) -> str:
        return "SQ8"

    def parameters(self, setting: int) -> Any:
        """Return the number of lists to visit."""
        return _faiss().SearchParametersIVF(nprobe=setting)


class PQEngine(IVFEngine):
    """k-means lists of product-quantised vectors."""

    name, native_class = "pq", "IndexIVFPQ"

    @property
    def sizes(self) -> dict[str, Any]:
        """Number of lists, and bytes per row."""
        return super().sizes | {"bytes": self._row_bytes}

    @property
    def _row_bytes(self) -> int:
        return code_bytes(self.vectors.dimension)

    @property
    def _codec(self) -> str:
        # "np" skips polysemous training, which takes seconds per byte and only helps Hamming distances
        return f"PQ{self._row_bytes}np"

    def empty(self) -> Any:
        """Return an untrained index; raises `RecipeError` if there are too few rows to train codes."""
        if len(self.vectors) < CODE_VALUES:
            raise RecipeError(
                "retriever.index",
                f"'pq' needs {CODE_VALUES} documents or more, but the memory has {len(self.vectors)}",
                "use index=auto, which searches small memories exactly",
            )
        native = super().empty()
        native.pq.cp.min_points_per_centroid = 1
        return native


class HNSWEngine(FaissEngine):
    """A graph over vectors of 8 bits per number."""

    name, setting_key, least_setting, native_class = "hnsw", "ef_search", 32, "IndexHNSWSQ"

    @property
    def sizes(self) -> dict[str, Any]:
        """Links per node, and size of the candidate list while building."""
        return {"links": LINKS, "construction": CONSTRUCTION}

    @property
    def num_bytes(self) -> int:
        """Rows and links; a layer has a 32nd of the nodes of the one below."""
        num_rows, dimension = self.vectors.shape
        return num_rows * (dimension + 4 * 2 * LINKS + 16)

    @property
    def most_setting(self) -> int:
        """The number of nodes."""
        return len(self.vectors)

    def empty(self) -> Any:
        """Return a graph without nodes."""
        faiss = _faiss()
        native = faiss.IndexHNSWSQ(
            self.vectors.dimension, faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT
        )
        native.hnsw.efConstruction = CONSTRUCTION
        return native

    def parameters(self, setting: int) -> Any:
        """Return the size of the candidate list."""
        return _faiss().SearchParametersHNSW(efSearch=setting)


ENGINES: dict[str, type[FaissEngine]] = {
    engine.name: engine for engine in (IVFEngine, HNSWEngine, PQEngine)
}


def _faiss() -> Any:
    """Import faiss untyped: its type stubs are incomplete."""
    import faiss

    return faiss


def num_lists(num_rows: int) -> int:
    """Number of k-means lists of a bank: about 2 sqrt(M).

    Choosing lists then costs about as much as searching a few of them.

    >>> num_lists(1_000_000), num_lists(100), num_lists(1)
    (2000, 1, 1)
    """
    return max(1, min(round(2 * math.sqrt(num_rows)), num_rows // ROWS_PER_LIST))


def code_bytes(dimension: int) -> int:
    """Number of bytes of a PQ code: the largest divisor of E up to E / `NUMBERS_PER_BYTE`.

    >>> code_bytes(512), code_bytes(100), code_bytes(7)
    (64, 10, 1)
    """
    return next(
        number
        for number in range(max(1, dimension // NUMBERS_PER_BYTE), 0, -1)
        if dimension % number == 0
    )
