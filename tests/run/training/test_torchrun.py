"""torchrun itself: it starts the processes again when one of them is killed, and they resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cm3run.checkpoint import OPTIMIZER, WEIGHTS, latest_checkpoint
from cm3run.checkpoint.tensors import stored_tensors
from cm3run.training.metrics import read_metrics
from squares import PARTS

STEPS = 20


def workers_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(int(child) for child in children)


@contextmanager
def launched(out: Path, log: Path, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two processes that share a decoder, by torchrun; they may be started again twice."""
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--max-restarts", "2", "-m", "cm3apps.cli.main"),
                *("--plugin", str(PARTS / "train_parts.py"), "train", "--new", "--device", "cpu"),
                *(str(PARTS / "squares.yaml"), "-o", str(out), "--shard", "2"),
                *(f"train.steps={STEPS}", "train.log_every_steps=1", "train.precision=fp32"),
                *(f"data.cache_dir={cache}", "decoder.dropout=0"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            },
        )
    try:
        yield launcher
    finally:
        launcher.kill()
        launcher.wait()


def kill_when(launcher: int, place: int, reached: Callable[[], bool]) -> None:
    """SIGKILL to one of the two, once both are there and this is so; wait until they are others."""
    end = time.monotonic() + 300
    while len(before := workers_of(launcher)) < 2 or not reached():
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(before[place], signal.SIGKILL)
    while set(before) & set(workers_of(launcher)):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_torchrun_starts_again_what_was_killed(tmp_path: Path) -> None:
    """One is killed while a checkpoint is written, later the other within a step: the end is that of a run that
    nothing happened to."""
    whole, out, log = tmp_path / "whole", tmp_path / "out", tmp_path / "log"
    with launched(whole, log, tmp_path / "cache") as launcher:
        assert launcher.wait(300) == 0, log.read_text()
    written = out / "checkpoints"
    with launched(out, log, tmp_path / "cache") as launcher:
        kill_when(launcher.pid, 0, lambda: any(written.glob(".step-*")))
        kill_when(launcher.pid, 1, lambda: any(line["step"] >= 7 for line in read_metrics(out)))
        assert launcher.wait(300) == 0, log.read_text()
    printed = log.read_text()
    assert "the connection to another process, which ended or was killed" in printed
    assert f"squares resumes from {written}/step-" in printed
    losses = [
        [(line["step"], line["train/loss"]) for line in read_metrics(run) if "train/loss" in line]
        for run in (out, whole)
    ]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1)), "none lost, none twice"
    for name in (WEIGHTS, OPTIMIZER):
        newest = [latest_checkpoint(run) for run in (out, whole)]
        one, other = (stored_tensors(folder, name) for folder in newest if folder is not None)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=0, atol=0)
