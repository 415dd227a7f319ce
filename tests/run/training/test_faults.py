"""Training on a disk that is full, and under a clock that is set back by a day and forward by a year: the
disk and the clock are real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cm3run.checkpoint import OPTIMIZER, WEIGHTS, complete_checkpoints, latest_checkpoint
from cm3run.checkpoint.tensors import stored_tensors
from cm3run.training.metrics import read_metrics
from small_disk import leave_room, small_disk
from squares import PARTS

pytestmark = pytest.mark.slow
JUMPS = ("-1d", "+365d", "+0")
SHARED = ("--shard", "2")


def train(
    out: Path, processes: int, *overrides: str, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    return subprocess.run(
        [
            *(sys.executable, "-m", *(launcher if processes > 1 else ())),
            *("cm3apps.cli.main", "--plugin", str(PARTS / "train_parts.py"), "train"),
            *(str(PARTS / "squares.yaml"), "-o", str(out), "--device", "cpu"),
            *("decoder.dropout=0", "train.precision=fp32", "train.log_every_steps=1"),
            "train.steps=7",
            *overrides,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            **(more or {}),
        },
    )


def assert_same_end(left: Path, right: Path) -> None:
    for name in (WEIGHTS, OPTIMIZER):
        newest = [latest_checkpoint(out) for out in (left, right)]
        one, other = (stored_tensors(folder, name) for folder in newest if folder is not None)
        for key, tensor in one.items():
            if not key.startswith("generator"):
                torch.testing.assert_close(other[key], tensor, rtol=0, atol=1e-5)
    assert [line["step"] for line in read_metrics(left)] == [
        line["step"] for line in read_metrics(right)
    ]


def test_two_processes_that_share_a_decoder_on_a_full_disk(tmp_path: Path) -> None:
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    whole = train(tmp_path / "whole", 2, *SHARED, cache)
    assert whole.returncode == 0, whole.stderr
    with small_disk(tmp_path / "disk", 8192) as disk:
        out = disk / "out"
        filler = leave_room(disk, 500)  # the first checkpoint fits
        ended = train(out, 2, *SHARED, cache)
        assert ended.returncode != 0
        assert "can't write its part ([Errno 28] No space left on device); older " in ended.stderr
        assert "run the same command again: it resumes from the newest" in ended.stderr
        assert [one.name for one in complete_checkpoints(out)] == ["step-00000003"]
        assert [one.name for one in (out / "checkpoints").iterdir()] == ["step-00000003"]
        filler.unlink()
        again = train(out, 2, *SHARED, cache)
        assert again.returncode == 0, again.stderr
        assert "resumes from" in again.stderr
        assert_same_end(out, tmp_path / "whole")


@contextmanager
def jumping_clock(folder: Path) -> Iterator[dict[str, str]]:
    """Variables for processes whose clock on the wall jumps while they run; the one of intervals does not, as
    when a clock is set."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:  # .ci/run installs it where it can; the machine's own clock must not be set
        pytest.skip("libfaketime is not installed (apt-get install libfaketime)")
    file, stopped = folder / "clock", threading.Event()

    def set_to(offset: str) -> None:
        (folder / "next").write_text(f"{offset}\n")
        (folder / "next").replace(file)

    def jump() -> None:
        number = 0
        while not stopped.wait(0.5):
            set_to(JUMPS[number % len(JUMPS)])
            number += 1

    set_to("+0")
    thread = threading.Thread(target=jump)
    thread.start()
    try:
        yield {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
    finally:
        stopped.set()
        thread.join()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_clock_that_jumps(processes: int, tmp_path: Path) -> None:
    """Checkpoints by minutes come when they are due, no time is negative, and the run is that of a clock that
    stands."""
    given = [
        *(SHARED if processes > 1 else ()),
        f"data.cache_dir={tmp_path / 'cache'}",
        "train.checkpoint_every_steps=null",
        "train.checkpoint_every_minutes=1e-6",
        "train.keep_checkpoints=100",
    ]
    assert train(tmp_path / "whole", processes, *given).returncode == 0
    with jumping_clock(tmp_path) as variables:
        done = train(tmp_path / "out", processes, *given, more=variables)
    assert done.returncode == 0, done.stderr
    assert len(complete_checkpoints(tmp_path / "out")) == 7
    assert_same_end(tmp_path / "out", tmp_path / "whole")
    lines = [line for line in read_metrics(tmp_path / "out") if "elapsed_s" in line]
    elapsed = [line["elapsed_s"] for line in lines]
    assert elapsed == sorted(elapsed)
    for line in lines[1:]:  # the first is written before a step was measured
        assert 0 <= line["elapsed_s"] < 3600
        assert 0 <= line["time/data"] <= 1
        assert 0 <= line["time/other"] <= 1
        assert line["seconds_left"] >= 0
        assert line["tokens_per_second"] > 0
