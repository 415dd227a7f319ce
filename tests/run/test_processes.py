"""One process, and what a launcher says of several. tests/run/training/test_ranks.py starts them."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
from torch.distributed import DistNetworkError

from cm3core.errors import DeviceError, ProcessError
from cm3run.machine_memory import MachineMemory
from cm3run.processes import Processes, is_divided, is_lost, own_part, started_processes
from cm3run.stop_signals import StopSignals
from messages import tells

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def launched(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in (ALONE | variables).items():
        monkeypatch.setenv(name, value)


def test_one_process_answers_itself() -> None:
    one = Processes()
    tensor = torch.tensor([1.0])
    assert one.sum(tensor) is tensor
    assert one.all_of("a") == ["a"]
    assert one.any(True)
    assert one.agreed(3.5, True, False) == (3.5, True, False, True)
    assert one.first(lambda: 7) == 7
    assert one.seed(1, 2) is None
    assert one.group is None
    assert one.is_first
    one.check_same({"recipe": "a"})
    with one.in_turn(), one.only_first_talks():
        print("heard", file=sys.stderr)
    assert not is_divided(tensor)
    assert own_part(tensor) is tensor


def test_a_launcher_of_one_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch)
    with started_processes("cuda:3") as (processes, device):
        assert type(processes) is Processes
        assert device == "cuda:3"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"RANK": "one"},
            "environment variable RANK: is 'one', not",
        ),
        (
            {"RANK": "2", "WORLD_SIZE": "2"},
            "environment: RANK=2, WORLD_SIZE=2, LOCAL_RANK=2",
        ),
    ],
)
def test_variables_that_can_not_be(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    launched(monkeypatch, **variables)
    with pytest.raises(ProcessError) as caught, started_processes():
        pass
    assert tells(caught.value, expected)


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, WORLD_SIZE="4", RANK="3")
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError) as caught, started_processes():
        pass
    assert tells(caught.value, "process 3 of 4 on here: has no GPU ... 4 ... and has 2 GPUs")
    with pytest.raises(DeviceError) as caught, started_processes("cuda:1"):
        pass
    assert tells(caught.value, "device 'cuda:1': is one GPU, but ... 4 ... --device cuda")


def test_what_says_that_a_process_is_gone() -> None:
    assert is_lost(RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert is_lost(RuntimeError("NCCL error: remote process exited"))
    assert is_lost(DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_memory_that_processes_share() -> None:
    memory = MachineMemory(1000, "this machine", swap=10, free=301)
    assert memory.shared(1) is memory
    assert memory.shared(4) == MachineMemory(250, "a process's part of this machine", 2, 75)
    assert MachineMemory(None, "").shared(4) == MachineMemory(None, "")


def test_a_signal_that_a_launcher_repeats_counts_once() -> None:
    """And without patience, as in one process, the second one stops at once."""
    with StopSignals(patience_s=60.0) as patient:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert patient.received == signal.SIGINT
    with StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
