"""The record of a run, `metrics.jsonl`, and the speed meter."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from cm3core.errors import CheckpointError
from cm3core.files import write_bytes

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends metrics to `OUT/metrics.jsonl`, one record per line. Failing to write it is an error;
    trackers (`cm3run.training.tracking`), which are told the same numbers, may fail.

    Args:
        out_dir: the run's folder.
        step: the checkpoint's step when a run resumes: later lines, and an incomplete last line,
            are removed; 0 for a new run.
    """

    def __init__(self, out_dir: Path, step: int = 0) -> None:
        self.path = Path(out_dir) / METRICS
        kept = [line for line in read_metrics(out_dir) if line["step"] <= step]
        write_bytes(self.path, b"".join(json.dumps(line).encode() + b"\n" for line in kept))
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line {"step": ..., name: value ...}.

        It is a single write, so that a killed process leaves whole lines. Raises `CheckpointError` when the disk is full.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise self._not_written(str(error)) from error
        if written < len(line):
            raise self._not_written("the disk is full")

    def _not_written(self, reason: str) -> CheckpointError:
        return CheckpointError(
            str(self.path),
            f"can't be written ({reason})",
            "free space on that disk, then run the same command again to resume",
        )

    def flush(self) -> None:
        """Flush everything written so far to disk. Raises `CheckpointError` when that fails."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._not_written(str(error)) from error

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            os.close(self._file)


class NoLog(MetricsLog):
    """Of a process that isn't the first: it writes nothing."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_metrics(out_dir: str | Path) -> list[dict[str, float]]:
    """All whole lines of a run's `metrics.jsonl`, in order.

    Lines in the middle that can't be read are left out, and one note reports how many.
    """
    path = Path(out_dir) / METRICS
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    records = [record for line in whole if (record := _record(line)) is not None]
    if len(records) < len(whole):
        tqdm.write(
            f"note: {path}: {len(whole) - len(records)} of {len(whole)} lines can't be read and are "
            "left out",
            file=sys.stderr,
        )
    return records


def _record(line: bytes) -> dict[str, float] | None:
    """The record of a line; None where it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        return None
    return record if all(isinstance(v, int | float | None) for v in record.values()) else None


class SpeedMeter:
    """Exponential average of a rate, weighted by time: a stall of a minute counts as a minute.

    Args:
        time_constant_s: seconds after which an old rate has weight 1/e.
    """

    def __init__(self, time_constant_s: float = 30.0) -> None:
        self.time_constant_s = time_constant_s
        self._amount = self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """`amount` done in `seconds`."""
        keep = math.exp(-seconds / self.time_constant_s)
        self._amount, self._seconds = self._amount * keep + amount, self._seconds * keep + seconds

    @property
    def rate(self) -> float:
        """Amount per second; 0 before anything was added."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0
