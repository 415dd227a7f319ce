"""A run killed with SIGKILL at random moments ends with the same bytes as an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cm3run.checkpoint import OPTIMIZER, WEIGHTS
from cm3run.training.metrics import read_metrics

SCRIPT = Path(__file__).parents[2] / "fixtures" / "train" / "kill_and_resume.py"


@pytest.mark.slow
def test_sigkill_at_any_moment(tmp_path: Path) -> None:
    """Half of the time goes into saving (every other step), so that kills hit it too.

    Muon's run includes AdamW.
    """
    overrides = [
        "train.optimizer=muon",
        "train.checkpoint_every_steps=2",
        "train.log_every_steps=1",
        "train.validation_splits=[]",
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "30", "1", *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["status"] == 0, done.stderr
    assert len(report["killed_at"]) >= 2, report
    for name in (WEIGHTS, OPTIMIZER):
        paths = [
            tmp_path / run / "checkpoints" / "step-00000030" / name for run in ("whole", "killed")
        ]
        assert paths[0].read_bytes() == paths[1].read_bytes(), (name, report)
    whole, killed = (
        [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path / run)]
        for run in ("whole", "killed")
    )
    assert whole == killed
    assert [step for step, _ in whole] == list(range(1, 31)), (
        "no step is lost and none is there twice"
    )
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*")), "leftovers are cleared away"
