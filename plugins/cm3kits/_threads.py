"""Concurrent calls, for laws of components used by several threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

T = TypeVar("T")
#: Python's thread switch interval in seconds: very short, so that threads interleave.
_SWITCH = 1e-6


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Return the calls' results; each runs in its own thread, and all start together.

    Raises the first error of a call after all have ended.
    """
    together, before = Barrier(len(calls)), sys.getswitchinterval()

    def begin(call: Callable[[], T]) -> T:
        together.wait()
        return call()

    sys.setswitchinterval(_SWITCH)
    try:
        with ThreadPoolExecutor(len(calls)) as pool:
            running = [pool.submit(begin, call) for call in calls]
            return [one.result() for one in running]
    finally:
        sys.setswitchinterval(before)
