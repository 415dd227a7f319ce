"""Threads and matrix products of the engines' calls."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

#: So many queries are searched by matrix products, fewer one by one (measured at 64 and 512 numbers
#: a vector).
_MIN_BATCH = 8


def num_threads() -> int:
    """As many as torch has, whose pool is another one: together they would exceed the machine.
    Before torch is imported what OMP_NUM_THREADS says, else all cores."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1


@contextmanager
def faiss_calls(dimension: int) -> Iterator[ModuleType]:
    """faiss, for calls from this thread with `num_threads()` threads, and with matrix products from
    `_MIN_BATCH` queries on. By its own rule (from 1.15 on) 200 queries of 512 numbers are searched
    one by one, which takes five times as long.

    Args:
        dimension: numbers of a vector.
    """
    import faiss

    faiss.omp_set_num_threads(num_threads())
    rule = _blas_rule()
    if rule > 1000:  # it counts numbers; before 1.15 queries, and from 20 on
        faiss.cvar.distance_compute_blas_threshold = _MIN_BATCH * dimension
    try:
        yield faiss
    finally:
        faiss.cvar.distance_compute_blas_threshold = rule


@cache
def _blas_rule() -> int:
    """As faiss comes."""
    import faiss

    return int(faiss.cvar.distance_compute_blas_threshold)
