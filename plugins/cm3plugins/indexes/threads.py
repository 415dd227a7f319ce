"""Threads and matrix products of calls to the engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from types import ModuleType

#: At least this many queries are searched by matrix products, fewer one by one (measured at 64 and
#: 512 numbers per vector).
_MIN_BATCH = 8


def num_threads() -> int:
    """torch's number of threads; before torch is imported, OMP_NUM_THREADS or all cores.

    torch has its own pool: together they would oversubscribe the machine otherwise.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1


@contextmanager
def faiss_calls(dimension: int, *, one_by_one: bool = False) -> Iterator[ModuleType]:
    """faiss, for calls from this thread with `num_threads()` threads. Not to be nested.

    From `_MIN_BATCH` queries on it uses matrix products. By its own rule (from 1.15 on) 200 queries
    of 512 numbers are searched one by one, which takes five times as long.

    faiss has one rule for the whole process. So calls of several threads run side by side where they
    want the same one, and one after the other where not: changed within a search, it would change
    the last bits of the results.

    Args:
        dimension: numbers per vector.
        one_by_one: no matrix products: a query's distances are the same to the last bit, whatever
            the other queries are.
    """
    import faiss

    faiss.omp_set_num_threads(num_threads())
    with _rule.held(2**31 - 1 if one_by_one else _MIN_BATCH * dimension, exactly=one_by_one):
        yield faiss


class _Rule:
    """The size from which faiss uses matrix products: those who want the same one hold it together."""

    def __init__(self) -> None:
        self._change = Condition()
        self._default: int | None = None
        self._held = self._num = 0

    @contextmanager
    def held(self, size: int, *, exactly: bool) -> Iterator[None]:
        """Wait until nobody holds another size, and hold this one.

        Args:
            size: a count of numbers.
            exactly: whether it holds for a faiss that counts queries too (before 1.15), whose default
                of 20 is fine otherwise.
        """
        import faiss

        with self._change:
            if self._default is None:
                self._default = int(faiss.cvar.distance_compute_blas_threshold)
            wanted = size if exactly or self._default > 1000 else self._default
            self._change.wait_for(lambda: not self._num or self._held == wanted)
            self._held, self._num = wanted, self._num + 1
            faiss.cvar.distance_compute_blas_threshold = wanted
        try:
            yield
        finally:
            with self._change:
                self._num -= 1
                if not self._num:
                    faiss.cvar.distance_compute_blas_threshold = self._default
                    self._change.notify_all()


_rule = _Rule()


def _after_fork() -> None:
    global _rule
    _rule = _Rule()  # threads of the parent that held it are not here


os.register_at_fork(after_in_child=_after_fork)
