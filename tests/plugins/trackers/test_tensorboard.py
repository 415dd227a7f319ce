"""The tracker `tensorboard`: the kit, what it writes, and a run with one that fails."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import numpy as np
import pytest

from cm3core.interfaces import Measured, PictureDrawn, RunStarted, Validated
from cm3kits.tracker import TrackerContract
from cm3plugins.trackers import TensorBoardConfig
from cm3run.training.metrics import Tracking
from messages import tells

pytest.importorskip("tensorboard", reason="needs pip install 'cm3leon[tensorboard]'")


class TestTensorBoard(TrackerContract):
    config = TensorBoardConfig()
    max_examples = 3


def start(folder: Path, step: int = 0) -> RunStarted:
    return RunStarted(folder, "toy", {}, "0" * 12, step, 1, 1, "cm3 train toy")


def written(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    found = {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    return found | {
        name: [(one.step, 0) for one in events.Images(name)] for name in events.Tags()["images"]
    }


def test_curves_and_pictures(tmp_path: Path) -> None:
    tracker = TensorBoardConfig().build()
    tracker.on_start(start(tmp_path))
    tracker.on_metrics(Measured(1, {"train/loss": 4.0}))
    tracker.on_validation(Validated(1, {"validation/valid/image_loss": 5.0}))
    tracker.on_picture(PictureDrawn(1, "samples", np.zeros((4, 6, 3), np.uint8)))
    tracker.on_metrics(Measured(2, {"train/loss": 3.0}))
    tracker.close()
    assert written(tmp_path) == {
        "train/loss": [(1, 4.0), (2, 3.0)],
        "validation/valid/image_loss": [(1, 5.0)],
        "samples": [(1, 0)],
    }


def test_steps_that_are_done_again_are_left_out(tmp_path: Path) -> None:
    for step, values in ((0, [4.0, 3.0, 2.0]), (1, [2.5])):
        tracker = TensorBoardConfig().build()
        tracker.on_start(start(tmp_path, step))
        for by, value in enumerate(values, 1):
            tracker.on_metrics(Measured(step + by, {"train/loss": value}))
        tracker.close()
    assert written(tmp_path) == {"train/loss": [(1, 4.0), (2, 2.5)]}


class BrokenWriter:
    """TensorBoard's writer on a disk that is full when the method `fails` is called."""

    fails = "add_scalar"

    def __init__(self, folder: str, **options: object) -> None:
        self._call("__init__")

    def _call(self, name: str) -> None:
        if name == self.fails:
            raise OSError(28, "No space left on device")

    def add_scalar(self, *values: object) -> None:
        self._call("add_scalar")

    def add_image(self, *values: object, **options: object) -> None:
        self._call("add_image")

    def flush(self) -> None:
        self._call("flush")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("__init__", "on_start"),
        ("add_scalar", "on_metrics"),
        ("add_image", "on_picture"),
        ("flush", "flush"),
        ("close", "close"),
    ],
)
def test_one_that_fails_is_left_out_and_said_once(
    method: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(BrokenWriter, "fails", method)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", BrokenWriter)
    tracking = Tracking([("tensorboard", TensorBoardConfig().build())])
    tracking.tell(start(tmp_path))
    for step in (1, 2):
        tracking.metrics(step, {"a": 1.0, "b": 2.0})
        tracking.picture(step, "samples", np.zeros((2, 2, 3), np.uint8))
        tracking.flush()
    tracking.close()
    assert tells(
        capsys.readouterr().err,
        f"note: the tracker 'tensorboard' ... {told} ... 28 ... metrics.jsonl",
    )


def test_its_own_thread_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real writer's thread hits a limit on file sizes."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # Python shows what ended a thread
    tracking = Tracking([("tensorboard", TensorBoardConfig().build())])
    tracking.tell(start(tmp_path))
    tracking.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard))
    try:
        for step in (1, 2):
            tracking.metrics(step, {"a": 1.0})
            tracking.flush()
        tracking.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        capsys.readouterr().err.count("note: the tracker 'tensorboard' is disabled from now on")
        == 1
    )
