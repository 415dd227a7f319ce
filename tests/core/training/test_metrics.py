"""Metrics: written exactly, cut where a run resumes, and fatal only if they are lost."""

from __future__ import annotations

import math
import os
import resource
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cm3core.errors import CheckpointError
from cm3core.training.metrics import MetricsLog, SpeedMeter, read_metrics
from cm3core.training.state import TrainState


def test_speed_by_hand() -> None:
    meter = SpeedMeter(time_constant_s=1.0)
    assert meter.rate == 0.0
    meter.add(10, 1.0)
    assert meter.rate == pytest.approx(10.0)
    meter.add(0, 1.0)
    keep = 2.718281828**-1
    assert meter.rate == pytest.approx(10 * keep / (keep + 1))


def test_metrics_log_cuts_what_is_later(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"a": 1.0})
    log.write(2, {"a": float("inf")})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": None}]
    MetricsLog(tmp_path, 1, tensorboard=False).close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}]


def test_lines_that_can_not_be_read_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [b'{"step": 1, "a": 1.0}', b'{"step": 2, "a": null}', b'{"step": 3, "a": 2}']
    bad = [
        b'{"step": 1, "a"',
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b'{"step": "2"}',
        b'{"step": 2, "a": "x"}',
    ]
    lines = [good[0], *bad, b"[" * 100_000, good[1], b"", good[2], b'{"step": 4, "a']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    MetricsLog(tmp_path, 3, tensorboard=False).close()
    path = tmp_path / "metrics.jsonl"
    assert capsys.readouterr().err == (
        f"note: {path}: 8 of 11 lines can't be read and are left out\n"
    )
    assert path.read_bytes() == b"\n".join([*good, b""])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err == ""


class BrokenWriter:
    """TensorBoard's writer on a disk that is full when the method `fails` is called."""

    fails = "add_scalar"

    def __init__(self, folder: str, **options: object) -> None:
        self.called: list[str] = []
        self._call("__init__")

    def _call(self, name: str) -> None:
        self.called.append(name)
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


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "add_image", "flush", "close"])
def test_tensorboard_that_fails_is_left_out_and_said_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(BrokenWriter, "fails", method)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", BrokenWriter)
    log = MetricsLog(tmp_path)
    for step in (1, 2):
        log.write(step, {"a": 1.0, "b": 2.0})
        log.image(step, "samples", np.zeros((2, 2, 3), np.uint8))
        log.flush()
    log.close()
    assert read_metrics(tmp_path) == [{"step": step, "a": 1.0, "b": 2.0} for step in (1, 2)]
    assert capsys.readouterr().err == (
        "note: TensorBoard is left out from now on, because it can't be written ([Errno 28] No space "
        "left on device); "
        "metrics.jsonl continues\n"
    )


def test_tensorboards_own_thread_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real writer's thread hits a limit on file sizes; the shorter metrics.jsonl continues."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # Python shows what ended a thread
    log = MetricsLog(tmp_path)
    log.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE,
        (max(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()), hard),
    )
    try:
        log.write(1, {"a": 1.0})
        log.flush()
        log.write(2, {"a": 1.0})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": 1.0}]
    assert capsys.readouterr().err.count("note: TensorBoard is left out from now on") == 1


def test_metrics_that_the_disk_does_not_take_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    for call in (log.flush, log.close):
        with pytest.raises(
            CheckpointError,
            match=r"metrics.jsonl: can't be written \(\[Errno 5\] Input/output error\)",
        ):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(log._file)  # closed nevertheless


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"a": 1.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"metrics.jsonl: can't be written \(the disk is full\)"
        ):
            log.write(2, {"a": 1.0})
        with pytest.raises(
            CheckpointError, match=r"metrics.jsonl: can't be written \(\[Errno 27\]"
        ):
            log.write(2, {"a": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}], "half a line is no line"


def test_the_time_left_counts_validations() -> None:
    """1,100 steps left at 2 a second, and the validations after steps 1,000, 1,500 and 1,900, the last."""
    meter = SpeedMeter()
    meter.add(2, 1.0)
    state: Any = SimpleNamespace(
        schedule=SimpleNamespace(minutes=None, steps=1900),
        step=800,
        steps_speed=meter,
        validation_s=40.0,
        recipe=SimpleNamespace(train=SimpleNamespace(validate_every_steps=500)),
    )
    assert TrainState.seconds_left.__get__(state) == 1100 / 2 + 3 * 40.0
    state.step = 1900
    assert TrainState.seconds_left.__get__(state) == 40.0, "the last one is still to come"
    state.steps_speed = SpeedMeter()
    assert TrainState.seconds_left.__get__(state) == math.inf
