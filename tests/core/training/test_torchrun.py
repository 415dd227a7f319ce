"""torchrun itself: it starts the processes again when one of them is killed, and they resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cm3core.training.metrics import read_metrics

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


def workers_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(int(child) for child in children)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_torchrun_starts_again_what_was_killed(tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--max-restarts", "1", "-m", "cm3core.cli.main"),
                *("--plugin", str(PARTS / "train_parts.py"), "train", "--new", "--device", "cpu"),
                *(str(PARTS / "squares.yaml"), "-o", str(out), "--shard", "2", "train.steps=40"),
                *(f"data.cache_dir={tmp_path / 'cache'}", "train.log_every_steps=1"),
            ],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            end = time.monotonic() + 300
            while time.monotonic() < end and not any(
                line["step"] >= 7 for line in read_metrics(out)
            ):
                time.sleep(0.05)
            os.kill(workers_of(launcher.pid)[-1], signal.SIGKILL)
            assert launcher.wait(300) == 0, log.read_text()
        finally:
            launcher.kill()
            launcher.wait()
    printed = log.read_text()
    assert "the connection to another process, which ended or was killed" in printed
    assert f"squares resumes from {out}/checkpoints/step-" in printed
    steps = [line["step"] for line in read_metrics(out) if "train/loss" in line]
    assert steps == list(range(1, 41)), "no step is lost and none is there twice"
