"""`flat`: exact search that compares every vector, without a copy.

Legend: Q queries, W results a query, m rows of a part, E dimension.
"""

from __future__ import annotations

import numpy as np

from cm3plugins.indexes.threads import faiss_calls
from cm3plugins.retrievers.index.base import NO_ROW, FloatArray, RowArray, VectorIndex, best


class FlatIndex(VectorIndex):
    """Exact search by faiss over arrays that may be memory-mapped and are not copied."""

    @property
    def exact(self) -> bool:
        """True: nothing is missed."""
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
                # A row with NaN is never found, and leaves an empty place.
                rows.append(np.where(of_part[1] == NO_ROW, NO_ROW, of_part[1] + start))
            start += len(part_mE)
        return best(np.concatenate(scores, 1), np.concatenate(rows, 1), width)
