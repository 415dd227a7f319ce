"""Metrics: written exactly, cut where a run resumes, and fatal only if they are lost."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cm3core.errors import CheckpointError
from cm3run.training.metrics import MetricsLog, SpeedMeter, read_metrics
from cm3run.training.state import TrainState


def test_speed_by_hand() -> None:
    meter = SpeedMeter(time_constant_s=1.0)
    assert meter.rate == 0.0
    meter.add(10, 1.0)
    assert meter.rate == pytest.approx(10.0)
    meter.add(0, 1.0)
    keep = 2.718281828**-1
    assert meter.rate == pytest.approx(10 * keep / (keep + 1))


def test_metrics_log_cuts_what_is_later(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(1, {"a": 1.0})
    log.write(2, {"a": float("inf")})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.0}, {"step": 2, "a": None}]
    MetricsLog(tmp_path, 1).close()
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
    MetricsLog(tmp_path, 3).close()
    path = tmp_path / "metrics.jsonl"
    assert capsys.readouterr().err == (
        f"note: {path}: 8 of 11 lines can't be read and are skipped\n"
    )
    assert path.read_bytes() == b"\n".join([*good, b""])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert capsys.readouterr().err == ""


def test_metrics_that_the_disk_does_not_take_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path)

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
    log = MetricsLog(tmp_path)
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
