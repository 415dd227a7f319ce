"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cm3core.errors import CheckpointError
from cm3core.plugins import Registry
from cm3run.checkpoint import (
    OPTIMIZER,
    STATE,
    WEIGHTS,
    Snapshot,
    complete_checkpoints,
    save_checkpoint,
)
from cm3run.training import saving
from cm3run.training.loop import train
from cm3run.training.metrics import read_metrics
from cm3run.training.state import TrainState
from squares import squares

#: Seconds after which a test hangs.
PATIENCE_S = 60.0
OFTEN = [
    "train.steps=12",
    "train.checkpoint_every_steps=4",
    "train.keep_checkpoints=9",
    "train.log_every_steps=1",
    "train.validation_splits=[]",
]
BEHIND = [*OFTEN, "train.save_in_background=true"]
#: A training whose checkpoint of step 8 is never finished: it says that it has begun.
UNFINISHED = """
import sys, time
from pathlib import Path
from cm3run.checkpoint import writing
from cm3apps.cli.main import main

write = writing._write_description
def wait(folder, snapshot, *others):
    if snapshot.state.step == 8:
        print(folder, flush=True)
        time.sleep(600)
    write(folder, snapshot, *others)
writing._write_description = wait
sys.exit(main(sys.argv[1:]))
"""


def held(until: Callable[[], bool], reached: threading.Event) -> Callable[..., Path]:
    """`save_checkpoint`, which in the background first waits until training has come further."""

    def save(*arguments: Any, **options: Any) -> Path:
        if threading.current_thread().name == "cm3-saving" and not until():
            assert reached.wait(PATIENCE_S), "training waited for its checkpoint"
        return save_checkpoint(*arguments, **options)

    return save


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_goes_on_while_a_checkpoint_is_written(
    optimizer: str,
    registry: Registry,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is written is the state of its step, not of the steps that followed meanwhile."""
    chosen = [f"train.optimizer={optimizer}"]
    train(squares(registry, cache, [*OFTEN, *chosen]), tmp_path / "a", registry, progress=False)
    reached = threading.Event()
    during: list[list[str]] = []

    def look(state: TrainState) -> None:
        if state.step == 7:  # the checkpoint of step 4 waits for this
            during.append([one.name for one in complete_checkpoints(tmp_path / "b")])
            reached.set()

    monkeypatch.setattr(saving, "save_checkpoint", held(reached.is_set, reached))
    recipe = squares(registry, cache, [*BEHIND, *chosen])
    train(recipe, tmp_path / "b", registry, progress=False, callbacks=[look])
    assert during == [[]]
    ends = [complete_checkpoints(tmp_path / name) for name in "ab"]
    assert [[one.name for one in run] for run in ends] == [
        ["step-00000004", "step-00000008", "step-00000012"]
    ] * 2
    for one, other in zip(*ends, strict=True):
        for name in (WEIGHTS, OPTIMIZER):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (one.name, name)
        states = [json.loads((folder / STATE).read_text()) for folder in (one, other)]
        for state in states:
            del state["elapsed_s"]
        assert states[0] == states[1]


@pytest.mark.slow
def test_one_is_waited_for_before_the_next_is_begun(
    registry: Registry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = [0], [0]

    def save(*arguments: Any, **options: Any) -> Path:
        running[0] += 1
        most[0] = max(most[0], running[0])
        path = save_checkpoint(*arguments, **options)
        running[0] -= 1
        return path

    monkeypatch.setattr(saving, "save_checkpoint", save)
    every = [one.replace("every_steps=4", "every_steps=1") for one in BEHIND]
    train(squares(registry, cache, every), tmp_path, registry, progress=False)
    assert most == [1]
    assert [one.name[-2:] for one in complete_checkpoints(tmp_path)] == [
        f"{step:02d}" for step in range(4, 13)
    ]


def test_what_fails_in_the_background_ends_training(
    registry: Registry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: training ends with its message, older checkpoints stay."""

    def save(out: Path, snapshot: Snapshot, **more: Any) -> Path:
        if snapshot.state.step == 8:
            raise CheckpointError("step-00000008", "no space", "free some")
        return save_checkpoint(out, snapshot, **more)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    recipe = squares(registry, cache, BEHIND)
    with pytest.raises(CheckpointError, match="no space"):
        train(recipe, tmp_path, registry, progress=False)
    assert [one.name for one in complete_checkpoints(tmp_path)] == ["step-00000004"]


def test_a_run_that_fails_leaves_what_was_being_written(
    registry: Registry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = threading.Event()

    def fail(state: TrainState) -> None:
        if state.step == 6:
            threading.Timer(0.05, reached.set).start()
            raise ZeroDivisionError

    monkeypatch.setattr(saving, "save_checkpoint", held(reached.is_set, reached))
    recipe = squares(registry, cache, BEHIND)
    with pytest.raises(ZeroDivisionError):
        train(recipe, tmp_path, registry, progress=False, callbacks=[fail])
    assert [one.name for one in complete_checkpoints(tmp_path)] == ["step-00000004"]


def test_copies_share_nothing_with_what_is_trained() -> None:
    """Tensors of one storage too, and integers."""
    weight = torch.arange(6.0).view(2, 3)
    given = {"weights": {"a": weight}, "optimizer": {"row": weight[0], "step": torch.tensor(3)}}
    stand_in: Any = type("", (), {"device": torch.device("cpu")})()
    saver = saving.Saver(stand_in)
    copies = saver._copied(given)
    weight.fill_(-1)
    given["optimizer"]["step"] += 1
    assert copies["weights"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copies["optimizer"]["row"].tolist() == [0, 1, 2]
    assert copies["optimizer"]["step"].item() == 3
    saver.close()


@pytest.mark.slow
def test_a_kill_while_one_is_written_leaves_the_one_before(
    registry: Registry, cache: Path, tmp_path: Path
) -> None:
    whole = train(squares(registry, cache, OFTEN), tmp_path / "whole", registry, progress=False)
    folder = Path(__file__).parents[2] / "fixtures" / "train"
    arguments = [
        *("--plugin", str(folder / "train_parts.py"), "train", str(folder / "squares.yaml")),
        *("-o", str(tmp_path / "killed"), "--device", "cpu", "--quiet", f"data.cache_dir={cache}"),
        *BEHIND,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", UNFINISHED, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        half = Path(process.stdout.readline().strip())
        while not any(line["step"] >= 11 for line in read_metrics(tmp_path / "killed")):
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    assert (half / WEIGHTS).is_file(), "it was killed in the middle of it"
    assert [one.name for one in complete_checkpoints(tmp_path / "killed")] == ["step-00000004"]
    recipe = squares(registry, cache, BEHIND)
    resumed = train(recipe, tmp_path / "killed", registry, progress=False)
    for name in (WEIGHTS, OPTIMIZER):
        assert (resumed.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    assert not half.exists()
