"""What trained components share: the key `weights`, files of weights, runs that stop and resume."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3plugins.trained.bundled import is_bundled, weights_path
from cm3plugins.trained.training_run import RunOptions, TrainingRun, differences
from cm3plugins.trained.weights_file import WeightsFormat, check_architecture, filled
from messages import tells

WORDS = {
    "owner": "painter",
    "section": "painter",
    "component": "painter",
    "trainer": "cm3 painter train",
}


def test_weights_are_a_path_or_a_bundled_name() -> None:
    bundled = {"small": Path("assets/small"), "large": Path("assets/large")}
    assert weights_path("bundled:small", bundled, **WORDS) == Path("assets/small")
    assert weights_path("~/mine", bundled, **WORDS) == Path("~/mine").expanduser()
    assert [is_bundled(weights) for weights in ("bundled:small", "mine", None)] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        (
            None,
            "painter.weights: is null: there are no weights",
        ),
        (
            "bundled:mine",
            "painter.weights=bundled:mine: no such bundled painter",
        ),
    ],
)
def test_no_weights_and_unknown_ones(weights: str | None, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        weights_path(weights, {"small": Path(), "large": Path()}, **WORDS)
    assert tells(caught.value, told)


def test_the_key_is_read_without_torch() -> None:
    code = "import sys, cm3plugins.trained.bundled; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@dataclass(kw_only=True)
class Shape:
    width: int = 2
    sides: tuple[int, ...] = (1, 2)


FORMAT = WeightsFormat("shape", Shape, how_to_train="train one", foreign="give another")


def test_a_file_of_weights_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    layer = nn.Linear(2, 2)
    FORMAT.save(path, Shape(sides=(3,)), {k: v.half() for k, v in layer.state_dict().items()})
    arch, state = FORMAT.load(path)
    assert arch == Shape(sides=(3,))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    again = filled(nn.Linear(2, 2), state, "here")
    assert torch.equal(again.weight, layer.weight.half().float())
    assert not again.training
    assert not again.weight.requires_grad
    with pytest.raises(CheckpointError, match="the weights do not fit the architecture"):
        filled(nn.Linear(3, 2), state, "here")
    with pytest.raises(CheckpointError) as caught:
        check_architecture(Shape(width=3), arch, path, "painter")
    assert tells(caught.value, f"{path}: has another ... is 2 ... and 3 ... 3")


def test_other_files_are_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(CheckpointError, match="no such file\n  next: train one"):
        FORMAT.load(path)
    other = WeightsFormat("other", Shape, how_to_train="train one")
    other.save(path, Shape(), {})
    with pytest.raises(
        CheckpointError, match="has no 'shape' in its metadata\n  next: give another"
    ):
        FORMAT.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        FORMAT.load(path)


@dataclass
class Settings:
    log_every_steps: int = 2
    checkpoint_every_minutes: float = 60.0
    checkpoint_every_steps: int | None = 3


class Counter:
    """A trainer that adds up the steps it made."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def step(self, number: int, progress: float) -> dict[str, float]:
        self.total += number
        return {"loss": float(self.total), "progress": progress}

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.total = state["total"]


def begin(folder: Path, steps: int = 5) -> tuple[TrainingRun, Counter]:
    counter = Counter()
    run = TrainingRun(
        folder,
        counter,
        Settings(),
        RunOptions(steps=steps, show_progress=False),
        facts={"training": {"seed": 0}},
    )
    return run, counter


def train(run: TrainingRun, counter: Counter, stop_after: int = 99) -> list[int]:
    """The steps after which a checkpoint was written."""
    saved = []

    def step(number: int, progress: float) -> dict[str, float]:
        if number + 1 == stop_after:
            signal.raise_signal(signal.SIGINT)
        return counter.step(number, progress)

    def save(stopped: bool) -> Path:
        assert stopped == (run.step_count == stop_after)
        run.save_state()
        saved.append(run.step_count)
        return run.out_dir

    stops = pytest.raises(KeyboardInterrupt) if stop_after < 99 else contextlib.nullcontext()
    with stops:
        run.train(step, save, label="counting")
    return saved


def test_a_run_logs_saves_and_resumes(tmp_path: Path) -> None:
    """Five steps with a break after the fourth: the same sum, each step once."""
    run, counter = begin(tmp_path)
    assert train(run, counter, stop_after=4) == [3, 4]
    run, counter = begin(tmp_path)
    run.resume()
    assert (run.step_count, run.progress()) == (4, 0.8)
    assert train(run, counter) == [5]
    assert counter.total == 0 + 1 + 2 + 3 + 4
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["progress"]) for line in lines] == [
        (2, 1.0, 0.2),
        (4, 6.0, 0.6),
    ]


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    train(*begin(tmp_path))
    with pytest.raises(CheckpointError, match="another configuration: steps was 5, is 6"):
        begin(tmp_path, steps=6)[0].resume()


def test_differences_are_named_with_their_sections() -> None:
    before = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 0}
    assert differences(before, {"a": 1, "b": {"c": 2, "d": 4}, "new": 5}) == [
        "b.d was 3, is 4",
        "gone was 0, is None",
        "new was None, is 5",
    ]
