"""The metrics of a run: the loss of a batch and its means by modality, the log `metrics.jsonl`, speed, trackers.

The decoder's head computes the loss: `Decoder.loss_sums`. A tracker that fails is disabled, without other effects.

Legend: B rows, T tokens, E model dimension, G groups (modality of the target).
"""

from __future__ import annotations

import json
import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.config.schema import check_config
from cm3core.errors import CheckpointError, MissingPackageError
from cm3core.interfaces.component import chosen_name
from cm3core.interfaces.decoder import Decoder
from cm3core.interfaces.tracker import (
    CheckpointSaved,
    Measured,
    PictureDrawn,
    RunEnded,
    RunFailed,
    RunInterrupted,
    RunStarted,
    StepDone,
    Tracker,
    TrackerConfig,
    Validated,
)
from cm3core.outputs import AppendedFile
from cm3core.plugins.registry import built, marked
from cm3run.progress import ATYPICAL

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe
    from cm3run.training.packing import TrainingBatch


#: Groups of the loss sums, as in `TrainingBatch.modality_BT`; group 0 is padding.
GROUPS = ("none", "text", "image", "special")


def batch_loss_sums(
    decoder: Decoder,
    hidden_BTE: Tensor,
    batch: TrainingBatch,
    *,
    z_loss: float = 0.0,
    num_parts: int = 1,
) -> tuple[Tensor, Tensor]:
    """`Decoder.loss_sums` of a batch: the weighted sum in nats, and its parts [G, 2] by modality.

    Args:
        decoder: its head computes the loss.
        hidden_BTE: the batch's hidden states.
        batch: targets, weights and modalities, on the same device.
        z_loss: see `Decoder.loss_sums`.
        num_parts: of the data set: G is four times that, with the modalities of each part in turn.
    """
    return decoder.loss_sums(
        rearrange(hidden_BTE, "B T E -> (B T) E"),
        rearrange(batch.targets_BT, "B T -> (B T)"),
        rearrange(batch.weights_BT, "B T -> (B T)"),
        rearrange(batch.modality_BT, "B T -> (B T)"),
        num_groups=len(GROUPS) * num_parts,
        z_loss=z_loss,
    )


def modality_metrics(sums_G2: Tensor) -> dict[str, float]:
    """Mean loss (nats per token) and perplexity by modality, and the overall mean loss.

    Modalities that did not occur are omitted; parts of the data set are added up.

    >>> modality_metrics(torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 2.0], [0.0, 0.0]]))["loss"]
    2.0
    """
    sums = (
        sums_G2.cpu().double().reshape(-1, len(GROUPS), 2).sum(0).tolist()
    )  # a single copy from the GPU
    metrics: dict[str, float] = {}
    if (count := sum(row[1] for row in sums)) > 0:
        metrics["loss"] = sum(row[0] for row in sums) / count
    for name, (loss, weight) in zip(GROUPS[1:], sums[1:], strict=True):
        if weight > 0:
            metrics[f"{name}_loss"] = loss / weight
            metrics[f"{name}_perplexity"] = math.exp(min(loss / weight, 700.0))
    return metrics


def part_metrics(sums_G2: Tensor, parts: Sequence[str]) -> dict[str, float]:
    """Mean loss by part of the data set; parts that did not occur are omitted.

    >>> part_metrics(torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 2.0], [0.0, 0.0]]), ["edit"])
    {'part/edit/loss': 2.0}
    """
    sums = sums_G2.cpu().double().reshape(-1, len(GROUPS), 2).sum(1).tolist()
    return {
        f"part/{name}/loss": loss / weight
        for name, (loss, weight) in zip(parts, sums, strict=False)
        if weight > 0
    }


METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends metrics to `OUT/metrics.jsonl`, one record per line. A failure to write it is an error;
    trackers (`cm3run.training.metrics`), which receive the same numbers, may fail.

    Args:
        out_dir: the run's folder.
        step: the checkpoint's step if a run resumes: later lines, and an incomplete last line,
            are removed; 0 for a new run.
    """

    def __init__(self, out_dir: Path, step: int = 0) -> None:
        self.path = Path(out_dir) / METRICS
        kept = [line for line in read_metrics(out_dir) if line["step"] <= step]
        content = b"".join(json.dumps(line).encode() + b"\n" for line in kept)
        self._file = AppendedFile(self.path, content)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line {"step": ..., name: value ...}.

        Uses a single write, so that a killed process leaves whole lines. Raises `CheckpointError` if the disk is full.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        try:
            written = self._file.write(line)
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
        """Flush everything written so far to disk. Raises `CheckpointError` if that fails."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._not_written(str(error)) from error

    def close(self) -> None:
        """Flush and close."""
        try:
            self.flush()
        finally:
            self._file.close()


class NoLog(MetricsLog):
    """The log of all processes except the first: writes nothing."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def read_metrics(out_dir: str | Path) -> list[dict[str, float]]:
    """All complete lines of a run's `metrics.jsonl`, in order.

    Unreadable lines in the middle are skipped, and one note reports their number.
    """
    path = Path(out_dir) / METRICS
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    records = [record for line in whole if (record := _record(line)) is not None]
    if len(records) < len(whole):
        tqdm.write(
            f"note: {path}: {len(whole) - len(records)} of {len(whole)} lines can't be read and are "
            "skipped",
            file=sys.stderr,
        )
    return records


def _record(line: bytes) -> dict[str, float] | None:
    """The record in a line; None if it contains none."""
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
        """Record `amount` done in `seconds`."""
        keep = math.exp(-seconds / self.time_constant_s)
        self._amount, self._seconds = self._amount * keep + amount, self._seconds * keep + seconds

    @property
    def rate(self) -> float:
        """Amount per second; 0 before anything was added."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0


class TypicalDuration:
    """Typical duration of recent steps. A pause of the process, a slow disk or a checkpoint is not typical, and the
    first steps, which fill caches and compile, count only until there are others.

    Args:
        num_recent: durations that count.
        warmup: durations at the start that are then left out.
    """

    def __init__(self, num_recent: int = 50, warmup: int = 3) -> None:
        self._seconds: deque[float] = deque(maxlen=num_recent)
        self._warmup = warmup

    def add(self, seconds: float) -> None:
        """Record a step's duration."""
        self._seconds.append(seconds)
        if self._warmup and len(self._seconds) > 2 * self._warmup:
            for _ in range(self._warmup):
                self._seconds.popleft()
            self._warmup = 0

    @property
    def seconds(self) -> float | None:
        """The mean of the recent durations up to `ATYPICAL` times their median; None before the first.

        >>> typical = TypicalDuration()
        >>> for duration in (9.0, 1.0, 1.0, 3.0, 600.0, 1.0, 2.0):
        ...     typical.add(duration)
        >>> typical.seconds
        2.0
        """
        if not self._seconds:
            return None
        most = ATYPICAL * median(self._seconds)
        kept = [one for one in self._seconds if one <= most]
        return sum(kept) / len(kept)


#: Event -> the tracker method that receives it.
METHODS: Mapping[type[Any], str] = {
    RunStarted: "on_start",
    StepDone: "on_step",
    Measured: "on_metrics",
    Validated: "on_validation",
    PictureDrawn: "on_picture",
    CheckpointSaved: "on_checkpoint",
    RunEnded: "on_end",
    RunInterrupted: "on_interrupt",
    RunFailed: "on_failure",
}


def trackers_of(recipe: Recipe, registry: Registry) -> list[tuple[str, Tracker]]:
    """The (name, tracker) pairs of a run: those of `train.trackers`, or by default those of cm3leon
    whose packages are installed.

    Raises:
        CM3Error: one can't be built.
    """
    named = recipe.train.trackers
    configs = _defaults(registry) if named is None else [(chosen_name(one), one) for one in named]
    for _, config in configs:
        check_config(config, "train.trackers")
    found: list[tuple[str, Tracker]] = []
    for name, config in configs:
        try:
            found.append((name, built(config.build(), config, registry)))
        except MissingPackageError as error:
            if named is not None:
                raise
            print(
                f"note: the tracker {name!r} is skipped, because {error.cause}: {error.next_step}, or "
                "set train.trackers=[]; metrics.jsonl has the same numbers",
                file=sys.stderr,
            )
    return found


def _defaults(registry: Registry) -> list[tuple[str, TrackerConfig]]:
    """Defaults come from this distribution only: other plugins must not track training without being asked."""
    own = {info.name for info in registry.plugins if info.distribution in OUR_DISTRIBUTIONS}
    found: list[tuple[str, TrackerConfig]] = []
    for name in marked(registry, "tracker", "is_default"):
        short = name.rpartition("/")[2]
        for owner in registry.owners("tracker", short):
            if owner in own and name in (short, f"{owner}/{short}"):
                config_class: Any = registry.config_class("tracker", f"{owner}/{short}")
                found.append((short, config_class()))
    return found


class Tracking:
    """Passes a run's events to its trackers.

    Args:
        trackers: name -> tracker; empty in all processes except the first.
        device: where the run trains; trackers must not affect its random generators.
    """

    def __init__(
        self, trackers: Sequence[tuple[str, Tracker]] = (), device: torch.device | None = None
    ) -> None:
        self._trackers = list(trackers)
        self._devices = [device] if device is not None and device.type == "cuda" else []

    def __bool__(self) -> bool:
        """Whether there are any trackers."""
        return bool(self._trackers)

    def tell(self, event: object) -> None:
        """Send an event, see `METHODS`."""
        self._call(METHODS[type(event)], event)

    def metrics(self, step: int, values: Mapping[str, float], *, validation: bool = False) -> None:
        """Send metrics of training or of a validation."""
        event = Validated if validation else Measured
        self.tell(event(step, MappingProxyType(dict(values))))

    def picture(self, step: int, name: str, pixels_HWC: PixelArray) -> None:
        """Send a sheet of pictures uint8 [height, width, 3]."""
        if self:
            copy = pixels_HWC.copy()
            copy.setflags(write=False)
            self.tell(PictureDrawn(step, name, copy))

    def flush(self) -> None:
        """Make trackers write everything sent so far."""
        self._call("flush")

    def close(self) -> None:
        """Close all trackers."""
        self._call("close")
        self._trackers = []

    def _call(self, method: str, *event: object) -> None:
        for name, tracker in list(self._trackers):
            if getattr(type(tracker), method) is getattr(Tracker, method):
                continue  # not overridden, so there are no generator states to save
            try:
                with torch.random.fork_rng(self._devices):
                    getattr(tracker, method)(*event)
            except (Exception, SystemExit) as error:
                self._leave_out(name, tracker, method, error)

    def _leave_out(self, name: str, tracker: Tracker, method: str, error: BaseException) -> None:
        """Report the failure once; the tracker gets no more events."""
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        tqdm.write(
            f"note: the tracker {name!r} is disabled from now on, because its {method} failed "
            f"({first}); training continues, and metrics.jsonl has the same numbers",
            file=sys.stderr,
        )
        self._trackers = [(other, one) for other, one in self._trackers if one is not tracker]
        if method != "close":
            with suppress(Exception, SystemExit):  # likely the same failure, already reported
                tracker.close()
