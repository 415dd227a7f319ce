"""Vector indexes for retrievers: the rows with the largest inner product with a query.

    options.py        the recipe's keys; light
    base.py           the interface
    flat.py           all vectors, exact, without a copy
    approximate.py    base of approximate engines: exact ranking of their candidates, choosing the
    setting of a search
    faiss_engines.py  IVF, HNSW and PQ by faiss
    kept.py           an index's file next to its bank: manifest, locking, when it is rebuilt
    opening.py        options -> index

Another engine (usearch) is an `Engine`, opened by `open_engine`.
"""

from cm3plugins.retrievers.index.base import VectorIndex
from cm3plugins.retrievers.index.opening import open_engine, open_index
from cm3plugins.retrievers.index.options import INDEX_TYPES, IndexOptions

__all__ = ["INDEX_TYPES", "IndexOptions", "VectorIndex", "open_engine", "open_index"]
