"""Threads and matrix products of calls to the engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

#: At least this many queries are searched by matrix products, fewer one by one (measured at 64 and
#: 512 numbers per vector).
_MIN_BATCH = 8


def num_threads() -> int:
    """As many threads as torch uses; before torch is imported, OMP_NUM_THREADS, else all cores.

    torch has its own pool: together they would oversubscribe the machine otherwise.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1


@contextmanager
def faiss_calls(dimension: int, *, one_by_one: bool = False) -> Iterator[ModuleType]:
    """faiss, for calls from this thread with `num_threads()` threads.

    From `_MIN_BATCH` queries on it uses matrix products. By its own rule (from 1.15 on) 200 queries
    of 512 numbers are searched one by one, which takes five times as long.

    Args:
        dimension: numbers per vector.
        one_by_one: no matrix products: a query's distances are the same to the last bit, whatever
            the other queries are.
    """
    import faiss

    faiss.omp_set_num_threads(num_threads())
    rule = _blas_rule()
    if one_by_one:
        faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    elif rule > 1000:  # a count of numbers; before 1.15, a count of queries, 20 by default
        faiss.cvar.distance_compute_blas_threshold = _MIN_BATCH * dimension
    try:
        yield faiss
    finally:
        faiss.cvar.distance_compute_blas_threshold = rule


@cache
def _blas_rule() -> int:
    """The default of faiss."""
    import faiss

    return int(faiss.cvar.distance_compute_blas_threshold)
