"""Calls at once, for laws of components that several threads use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

T = TypeVar("T")
#: Seconds after which Python lets another thread run: as few as it takes, so that threads meet.
_SWITCH = 1e-6


def at_once(*calls: Callable[[], T]) -> list[T]:
    """The calls' results; each runs in a thread of its own, and all begin together.

    The first error of a call is raised, after all have ended.
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
