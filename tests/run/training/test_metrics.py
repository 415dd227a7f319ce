"""Metrics: written exactly, cut where a run resumes, and fatal only if they are lost."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import CheckpointError
from cm3run.training.metrics import MetricsLog, SpeedMeter, TypicalDuration, read_metrics
from cm3run.training.state import Cadence, TrainState


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
    assert capsys.readouterr().err.startswith(
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
        os.fstat(log._file._handle)  # closed nevertheless


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
    typical = TypicalDuration()
    typical.add(0.5)
    state: Any = SimpleNamespace(
        schedule=SimpleNamespace(minutes=None, steps=1900),
        step=800,
        steps_s=typical,
        validation_s=40.0,
        cadences={},
        recipe=SimpleNamespace(train=SimpleNamespace(validate_every_steps=500)),
    )
    assert TrainState.seconds_left.__get__(state) == 1100 / 2 + 3 * 40.0
    state.step = 1900
    assert TrainState.seconds_left.__get__(state) == 40.0, "the last one is still to come"
    state.steps_s = TypicalDuration()
    assert TrainState.seconds_left.__get__(state) == math.inf


@given(
    st.lists(st.floats(0.5, 2.0), min_size=20, max_size=50),
    st.lists(st.tuples(st.integers(0, 49), st.floats(30.0, 1e5)), max_size=4),
)
def test_a_pause_changes_no_estimate(steps: list[float], pauses: list[tuple[int, float]]) -> None:
    """SIGSTOP for a day, a checkpoint on a slow disk: a few of many steps, and they count for nothing."""
    undisturbed, disturbed = TypicalDuration(warmup=0), TypicalDuration(warmup=0)
    stopped = {place % len(steps): seconds for place, seconds in pauses}
    for place, seconds in enumerate(steps):
        if place not in stopped:
            undisturbed.add(seconds)
        disturbed.add(stopped.get(place, seconds))
    assert disturbed.seconds == pytest.approx(undisturbed.seconds)


def test_the_first_steps_count_only_until_there_are_others() -> None:
    typical = TypicalDuration(warmup=2)
    assert typical.seconds is None
    typical.add(12.0)
    assert typical.seconds == 12.0
    for _ in range(3):
        typical.add(3.0)
    assert typical.seconds == 12.0 / 4 + 3 * 3.0 / 4
    typical.add(3.0)
    assert typical.seconds == 3.0


def test_what_is_due_by_the_clock_takes_a_fifth_of_the_time_at_most() -> None:
    """Every minute; the first takes 30 seconds, so the next is due after 2 minutes of training."""
    cadence = Cadence(1.0)
    assert cadence.due(0.0), "at the start"
    assert not cadence.due(30.0)
    assert cadence.share == 30 / 90
    assert [at for at in range(31, 300) if cadence.due(at)] == [150, 211, 272]
    assert not Cadence(None).due(1e9)
    later = Cadence(1.0)
    later.start(500.0)
    assert [at for at in range(500, 600) if later.due(at)] == [560]


def test_a_pause_is_no_cost() -> None:
    cadence = Cadence(1.0)
    assert cadence.due(0.0)
    assert not cadence.due(2.0)
    assert cadence.due(62.0)
    assert not cadence.due(10_000.0), "stopped for hours in the middle of it"
    assert cadence.cost_s == 2.0
