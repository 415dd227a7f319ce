"""How much memory there is, by whichever limit is lowest, and errors where it does not suffice."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cm3apps.cli.main import main
from cm3core.errors import DeviceError
from cm3run import machine_memory
from cm3run.machine_memory import (
    MachineMemory,
    address_space,
    fitting_memory,
    is_out_of_memory,
    peak_resident,
)
from messages import tells


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CM3_MEMORY_GB", raising=False)
    monkeypatch.setattr(machine_memory, "_physical", lambda: 8 << 30)
    monkeypatch.setattr(machine_memory, "group_limits", list)
    monkeypatch.setattr(
        machine_memory, "_meminfo", lambda: {"MemAvailable": 3 << 30, "SwapTotal": 2 << 30}
    )
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)


def test_the_machine() -> None:
    assert MachineMemory.find() == MachineMemory(8 << 30, "this machine", 2 << 30, 3 << 30)


def test_the_lowest_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_memory, "group_limits", lambda: [9 << 30, 4 << 30])
    found = MachineMemory.find()
    assert (found.limit, found.source, found.swap) == (4 << 30, "this process's control group", 0)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 << 30, resource.RLIM_INFINITY))
    found = MachineMemory.find()
    assert (found.limit, found.free) == (2 << 30, 2 << 30)
    assert found.source == "the limit on address space (ulimit -v)"
    monkeypatch.setenv("CM3_MEMORY_GB", "64")
    assert MachineMemory.find() == MachineMemory(64 * 10**9, "CM3_MEMORY_GB")


@pytest.mark.parametrize(
    ("given", "cause"),
    [("-3", "is not greater than 0"), ("0", "is not greater than 0")]
    + [(text, "is not a number of GB") for text in ("nan", "inf", "-inf", "64GB", "1e400", " ")],
)
def test_a_variable_that_is_no_size(
    given: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CM3_MEMORY_GB", given)
    with pytest.raises(DeviceError) as caught:
        MachineMemory.find()
    assert tells(caught.value, f"CM3_MEMORY_GB={given}: {cause} ... GB ... as 64")


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(machine_memory, "_physical", lambda: None)
    monkeypatch.setattr(machine_memory, "group_limits", list)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert MachineMemory.find().limit is None
    assert machine_memory._meminfo(tmp_path / "missing") == {}
    (tmp_path / "meminfo").write_text("MemAvailable:   12 kB\nHugePages_Total:  3\nodd\n")
    assert machine_memory._meminfo(tmp_path / "meminfo") == {"MemAvailable": 12 * 1024}
    assert address_space() >= 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
            "allocate memory: you tried to allocate 17179869184 bytes.\nmore"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
)
def test_refused_memory_is_an_error_with_a_next_step(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(DeviceError) as caught, fitting_memory("here", "use less"):
        raise error
    assert str(caught.value).startswith("here: does not fit into memory (")
    assert str(caught.value).endswith(")\n  next: use less")

    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr("cm3apps.cli.main._run", fail)
    assert main(["kinds"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: memory: there is too little (")
    assert len(shown.splitlines()) == 2


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), fitting_memory("here"):
        raise RuntimeError("shapes differ")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_of_this_program_alone() -> None:
    """A small program that a large one starts is small; `getrusage` would report the large one."""
    code = "from cm3run.machine_memory import peak_resident; print(peak_resident())"
    ballast = np.ones(2**26)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**20 < int(shown.stdout) < 2**28 < ballast.nbytes < peak_resident()
