"""Threads and matrix products in calls to faiss."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from types import ModuleType

#: At least this many queries are searched with matrix products, fewer one by one (measured with 64 and
#: 512 numbers per vector).
_MIN_BATCH = 8


def num_threads() -> int:
    """Return torch's number of threads; before torch is imported, OMP_NUM_THREADS or all cores.

    torch has its own thread pool; without a common limit both would oversubscribe the machine.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else os.cpu_count() or 1


@contextmanager
def faiss_calls(dimension: int, *, one_by_one: bool = False) -> Iterator[ModuleType]:
    """Yield faiss, for calls from this thread with `num_threads()` threads. Don't nest it.

    Uses matrix products from `_MIN_BATCH` queries on. By faiss's own rule (from 1.15 on), 200 queries
    of 512 numbers are searched one by one, which takes five times as long.

    faiss has one rule for the whole process. So calls of several threads run in parallel if they need the
    same rule, and one after the other otherwise: changing it during a search would change the last bits
    of the results.

    Args:
        dimension: numbers per vector.
        one_by_one: use no matrix products, so a query's distances are the same to the last bit, whatever
            the other queries are.
    """
    import faiss

    faiss.omp_set_num_threads(num_threads())
    with _rule.held(2**31 - 1 if one_by_one else _MIN_BATCH * dimension, exactly=one_by_one):
        yield faiss


class _Rule:
    """The number of queries from which faiss uses matrix products; threads that need the same value share it."""

    def __init__(self) -> None:
        self._change = Condition()
        self._default: int | None = None
        self._held = self._num = 0

    @contextmanager
    def held(self, size: int, *, exactly: bool) -> Iterator[None]:
        """Wait until no thread holds another size, and hold this one.

        Args:
            size: a count of numbers.
            exactly: also apply it to a faiss that counts queries (before 1.15), whose default of 20 is fine
                otherwise.
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
    _rule = _Rule()  # the parent's threads that held it don't exist here


os.register_at_fork(after_in_child=_after_fork)
