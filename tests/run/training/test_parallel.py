"""How many processes share a decoder, where their machines differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cm3core.plugins import Registry
from cm3core.recipe import Recipe, compose
from cm3run.machine_memory import MachineMemory
from cm3run.processes import Processes
from cm3run.training import parallel
from cm3run.training.parallel import Replicated, parallel_of


class Two(Processes):
    """Process 0 of two on two machines; `other`: how many have to share by process 1's memory."""

    world_size = 2

    def __init__(self, other: int) -> None:
        self.other = other

    def all_of(self, value: Any) -> list[Any]:
        return [value, self.other]


@pytest.fixture
def recipe(registry: Registry) -> Recipe:
    return compose("tiny", registry=registry)


@pytest.mark.parametrize(
    ("gb", "other", "expected"), [(100.0, 1, 1), (100.0, 2, 2), (1e-6, 1, 2), (1e-6, 2, 2)]
)
def test_the_smallest_machine_decides(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, gb: float, other: int, expected: int
) -> None:
    """With the number that fits itself alone, each would wait for groups that the other never joins."""
    monkeypatch.setattr(parallel, "Sharded", lambda _processes, number, *_: number)
    machine = MachineMemory(int(gb * 1e9), "this machine")
    found = parallel_of(recipe, Two(other), torch.device("cpu"), None, machine)
    if expected == 1:
        assert isinstance(found, Replicated)
    else:
        assert found == expected


def test_replicas_sum_gradients_without_waiting_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On "meta" no number can be read. Of three parameters the first has a gradient here, the second in the other
    process, and the third in none."""
    summed: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", summed.append)
    processes = Two(1)
    monkeypatch.setattr(processes, "sum", lambda has_N: has_N + torch.tensor([1.0, 1.0, 0.0]))
    first, second, third = (torch.nn.Parameter(torch.empty(2, 3, device="meta")) for _ in range(3))
    first.grad = torch.empty(2, 3, device="meta")
    Replicated(processes).reduce([first, second, third])
    assert [one.shape for one in summed] == [(12,)]
    assert second.grad is not None
    assert third.grad is None
