"""The interface of vector indexes; and `flat`, exact search over every vector without a copy.

Legend: Q queries, W results per query, C candidates per query, M rows, m rows of a part, E dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.errors import DataError
from cm3plugins.indexes.threads import faiss_calls

if TYPE_CHECKING:
    from cm3run.bank import VectorRows

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]

#: Row number of a missing result; its score is minus infinity.
NO_ROW = -1


class VectorIndex(ABC):
    """Finds the rows with the largest inner products.

    Args:
        vectors: M rows, which are not copied.
    """

    def __init__(self, vectors: VectorRows) -> None:
        self.vectors = vectors
        #: M.
        self.num_rows = len(vectors)

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether it finds every result."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Type and settings, in one line."""

    def search(self, queries_QE: FloatArray, width: int) -> tuple[FloatArray, RowArray]:
        """Return the best rows of each query.

        Args:
            queries_QE: float32.
            width: W, results per query; 0 or more.

        Returns:
            scores float32 [Q, W], inner products, best first, and rows int64 [Q, W]; missing results are minus
            infinity and `NO_ROW`.

        Raises:
            DataError: a query holds NaN or infinity.
        """
        queries_QE = np.ascontiguousarray(queries_QE, np.float32)
        assert queries_QE.shape[1:] == (self.vectors.dimension,), "queries of another embedder"
        assert width >= 0
        finite_Q = np.isfinite(queries_QE).all(1)
        if not finite_Q.all():
            raise DataError(
                f"query {int(np.argmin(finite_Q))}",
                "its vector holds NaN or infinity",
                "check the embedder's weights",
            )
        scores_QW = np.full((len(queries_QE), width), -np.inf, np.float32)
        rows_QW = np.full(scores_QW.shape, NO_ROW, np.int64)
        reached = min(width, self.num_rows)
        if reached and len(queries_QE):
            scores_QW[:, :reached], rows_QW[:, :reached] = self._search(queries_QE, reached)
        return scores_QW, rows_QW

    @abstractmethod
    def _search(self, queries_QE: FloatArray, width: int) -> tuple[FloatArray, RowArray]:
        """As `search`, with 1 <= width <= M and Q >= 1."""


def best(scores_QC: FloatArray, rows_QC: RowArray, width: int) -> tuple[FloatArray, RowArray]:
    """Return the `width` best candidates of each query, best first.

    Equal scores are ordered by row; candidates without a row come last.

    >>> best(np.array([[1, 3, 3, 9]], np.float32), np.array([[5, 7, 6, -1]]), 3)
    (array([[3., 3., 1.]], dtype=float32), array([[6, 7, 5]]))
    """
    scores_QC = np.where(rows_QC == NO_ROW, np.float32(-np.inf), scores_QC)
    order_QW = np.lexsort((rows_QC, -scores_QC))[:, :width]
    return np.take_along_axis(scores_QC, order_QW, 1), np.take_along_axis(rows_QC, order_QW, 1)


class FlatIndex(VectorIndex):
    """Exact search by faiss over arrays that may be memory-mapped and are not copied."""

    @property
    def exact(self) -> bool:
        """Always True."""
        return True

    @property
    def description(self) -> str:
        """Type of the index."""
        return "flat, exact"

    def _search(self, queries_QE: FloatArray, width: int) -> tuple[FloatArray, RowArray]:
        scores, rows, start = [], [], 0
        for part_mE in self.vectors.parts:
            if len(part_mE):
                with faiss_calls(self.vectors.dimension) as faiss:
                    of_part = faiss.knn(
                        queries_QE, part_mE, min(width, len(part_mE)), faiss.METRIC_INNER_PRODUCT
                    )
                scores.append(of_part[0])
                # A row with NaN is never found, and leaves an empty result.
                rows.append(np.where(of_part[1] == NO_ROW, NO_ROW, of_part[1] + start))
            start += len(part_mE)
        return best(np.concatenate(scores, 1), np.concatenate(rows, 1), width)
