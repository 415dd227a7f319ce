"""faiss has one rule of matrix products for the process; threads that want different ones take turns."""

from __future__ import annotations

import os
import threading
import time

import faiss
import pytest

from cm3kits._threads import at_once
from cm3plugins.indexes import threads
from cm3plugins.indexes.threads import faiss_calls

EXACT = 2**31 - 1


def rule() -> int:
    return int(faiss.cvar.distance_compute_blas_threshold)


def test_the_rule_holds_for_a_whole_call_and_is_restored() -> None:
    """With a call in another thread that wants another rule, or ends first."""
    default = rule()
    others = (8 * 64, 8 * 512) if default > 1000 else (default, default)
    wanted = {(64, False): others[0], (512, False): others[1], (64, True): EXACT}
    changed: list[tuple[int, int]] = []

    def calls(dimension: int, one_by_one: bool, seconds: float) -> None:
        for _ in range(20):
            with faiss_calls(dimension, one_by_one=one_by_one):
                time.sleep(seconds)
                changed.append((rule(), wanted[dimension, one_by_one]))

    at_once(
        lambda: calls(64, False, 1e-3),
        lambda: calls(512, False, 1e-4),
        lambda: calls(64, True, 1e-3),
        lambda: calls(64, True, 1e-4),
    )
    assert len(changed) == 80
    assert [pair for pair in changed if pair[0] != pair[1]] == []
    assert rule() == default


def test_calls_that_want_the_same_run_side_by_side() -> None:
    together = threading.Barrier(2, timeout=20)

    def call() -> None:
        with faiss_calls(64, one_by_one=True):
            together.wait()  # nobody comes here while another waits

    at_once(call, call)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_waits_for_no_thread_of_its_parent() -> None:
    with faiss_calls(64, one_by_one=True):
        child = os.fork()
        if not child:
            status = 1
            try:
                free = threads._rule._num == 0
                status = 0 if free else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
