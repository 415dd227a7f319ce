"""One process, and what a launcher says of several. tests/run/training/test_ranks.py starts them."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import DistNetworkError, distributed_c10d

from cm3core.errors import DeviceError, ProcessError
from cm3run.machine_memory import MachineMemory
from cm3run.processes import (
    Processes,
    TorchProcesses,
    _Place,
    _record_operations,
    is_divided,
    is_lost,
    own_part,
    started_processes,
)
from cm3run.stop_signals import StopSignals
from messages import tells

RECORDER = (
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
)
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


class GPUs:
    """Stands for torch's group of GPUs."""

    def __init__(self) -> None:
        self.limits: list[float] = []

    def _set_default_timeout(self, limit: timedelta) -> None:
        self.limits.append(limit.total_seconds())


class Host(GPUs):
    """Stands for a group on the host, which could also serve GPUs."""


def two_processes(monkeypatch: pytest.MonkeyPatch, *backends: GPUs) -> TorchProcesses:
    """One of two, with groups of these backends."""
    groups = [
        SimpleNamespace(
            _device_types=[torch.device("cpu"), torch.device("cuda")],
            _get_backend=lambda _, own=own: own,
        )
        for own in backends
    ]
    groups.append(SimpleNamespace(_device_types=[torch.device("cpu")]))
    monkeypatch.setattr(distributed_c10d, "_world", SimpleNamespace(pg_map=groups))
    return TorchProcesses(None, None, _Place(0, 2, 0, 2), 0)


def test_gpus_wait_for_each_other_300_s_and_then_100_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", GPUs, raising=False)
    monkeypatch.setenv("CM3_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a/7")
    for name in RECORDER:
        monkeypatch.setenv(name, "unset later")
        monkeypatch.delenv(name)
    _record_operations()
    traces = tmp_path / "nccl" / "a-7" / "rank-"
    assert [os.environ[name] for name in RECORDER] == ["2000", "1", str(traces)]
    assert traces.parent.is_dir()
    whole, mesh = GPUs(), GPUs()
    processes = two_processes(monkeypatch, whole, mesh)
    note = processes.before_steps()
    assert note is not None
    assert tells(
        note,
        "note: a GPU that waits for the others longer than 300 s in the first step, or 100 s later, ends the run",
    )
    assert f"to {traces}RANK on its machine; next: torchfrtrace {traces.parent} -p rank- " in note
    for _ in range(3):
        processes.after_step()
    assert whole.limits == mesh.limits == [300, 100]


def test_groups_on_the_host_keep_their_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for data and checkpoints. A torch without NCCL has no other groups."""
    group = Host()
    processes = two_processes(monkeypatch, group)
    for kind in (None, type("ProcessGroupNCCL", (), {})):
        monkeypatch.delattr(torch.distributed, "ProcessGroupNCCL", raising=False)
        if kind is not None:
            monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", kind, raising=False)
        assert processes.before_steps() is None
        processes.after_step()
    assert group.limits == []
    assert Processes().before_steps() is None


def test_the_users_own_flight_recorder_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, own in zip(RECORDER, ("0", "0", str(tmp_path / "own" / "trace_")), strict=True):
        monkeypatch.setenv(name, own)
    _record_operations()
    assert [os.environ[name] for name in RECORDER] == ["0", "0", str(tmp_path / "own" / "trace_")]
