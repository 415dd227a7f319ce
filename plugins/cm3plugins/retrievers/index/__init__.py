"""Vector indexes for retrievers: find the rows with the largest inner product with a query.

    base.py           the interface, and exact search over all vectors without a copy
    approximate.py    base of approximate engines: exact ranking of their candidates, choosing the
    setting of a search
    faiss_engines.py  IVF, HNSW and PQ by faiss
    opening.py        the recipe's keys; options -> index

Another engine (usearch) is an `Engine`, opened by `open_engine`.
"""

from cm3plugins.retrievers.index.base import VectorIndex
from cm3plugins.retrievers.index.opening import INDEX_TYPES, IndexOptions, open_engine, open_index

__all__ = ["INDEX_TYPES", "IndexOptions", "VectorIndex", "open_engine", "open_index"]
