"""`cm3 bench decode` on the smallest of everything, on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from cm3lab.benchmarks import machine, measure
from cm3lab.benchmarks.decode import runner
from cm3lab.benchmarks.decode.sizes import EXTENTS, SIZES
from decode_bench import EXTENT, LIMITS, MINI


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The command sets torch's threads for its process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on the smallest of everything."""
    monkeypatch.setitem(SIZES, "mini", MINI)
    monkeypatch.setitem(EXTENTS, "quick", EXTENT)
    monkeypatch.setitem(runner.READ_BYTES, "cpu", 2**20)
    monkeypatch.setattr(machine, "roofs", lambda where, stopwatch: dict(LIMITS))
    monkeypatch.setattr(machine, "stopwatch_for", lambda where: measure.CPUStopwatch(0.0, 3))
