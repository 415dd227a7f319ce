"""One training run: its budget and clock, its log, and the state to resume from.

The `Trainer` defines the model and the data; a run calls it step by step. A run that was stopped or
killed and resumed makes the same steps as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, CM3Error, DataError
from cm3core.files import atomic_path, open_regular
from cm3core.outputs import AppendedFile
from cm3run.progress import make_bar
from cm3run.stop_signals import StopSignals


def edge_error(error_BCHW: Tensor) -> Tensor:
    """Return the mean absolute first differences of an error, horizontal plus vertical.

    Penalises blur and ringing.
    """
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()


WEIGHTS, STATE, LOG = "model.safetensors", "state.pt", "log.jsonl"


class Trainer(Protocol):
    """Network, optimisers, and everything else that the next step depends on."""

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, as plain containers of tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


class RunSettings(Protocol):
    """Intervals at which a run writes."""

    log_every_steps: int
    checkpoint_every_minutes: float
    checkpoint_every_steps: int | None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The caller's choices for one run.

    Args:
        minutes: wall-clock budget of training (including time before resuming); or
            `steps`: number of updates. Give exactly one.
        resume: continue from the state in the run's folder, if there is one.
        validation_NHWC: pictures for the figures reported during training.
        show_progress: progress bars on stderr.
        on_checkpoint: called with the weights' path after each checkpoint.
    """

    minutes: float | None = None
    steps: int | None = None
    resume: bool = False
    validation_NHWC: PixelArray | None = None
    show_progress: bool = True
    on_checkpoint: Callable[[Path], None] | None = None


class TrainingRun:
    """The loop around a trainer.

    Args:
        out_dir: folder for `STATE` and `LOG`.
        trainer: the trainer.
        settings: how often to log and save.
        options: budget, and reporting.
        facts: plain values that must be the same when the run is resumed; the budget is
            added.
    """

    def __init__(
        self,
        out_dir: Path,
        trainer: Trainer,
        settings: RunSettings,
        options: RunOptions,
        *,
        facts: Mapping[str, Any],
    ) -> None:
        self.out_dir, self.options = out_dir, options
        self._trainer, self._settings = trainer, settings
        self.step_count, self.seconds = 0, 0.0
        budget = {"minutes": options.minutes, "steps": options.steps}
        self.identity = json.dumps({**facts, **budget}, sort_keys=True)

    def resume(self) -> None:
        """Load `STATE` if there is one.

        Raises:
            CheckpointError: the state is unreadable or belongs to another run.
        """
        path = self.out_dir / STATE
        if not path.exists():
            return
        state = _read_state(path)
        if state["identity"] != self.identity:
            changes = differences(json.loads(state["identity"]), json.loads(self.identity))
            raise CheckpointError(
                str(path),
                f"belongs to a run with another configuration: {', '.join(changes)}",
                "resume with the same recipe and budget, or choose another folder",
            )
        try:
            self._trainer.load_state_dict(state["trainer"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(path, error) from error
        self.step_count, self.seconds = state["step"], state["seconds"]

    def _step(
        self, step: Callable[[int, float], Mapping[str, float]], started: float, bar: tqdm[Any]
    ) -> None:
        """Run one step; counts, shows and logs it."""
        report = self._finite(step)
        self.step_count += 1
        self.seconds = time.monotonic() - started
        bar.update(min(100.0 * self.progress(), 100.0) - bar.n)
        if self.step_count % self._settings.log_every_steps == 0:
            bar.set_postfix_str(f"step {self.step_count} loss {report['loss']:.4f}")
            self.log(report)

    def _is_due(self, seconds: float) -> bool:
        """Whether a checkpoint is due this many seconds after the last one."""
        every = self._settings.checkpoint_every_steps
        return (every is not None and self.step_count % every == 0) or (
            seconds > 60.0 * self._settings.checkpoint_every_minutes
        )

    def _finite(self, step: Callable[[int, float], Mapping[str, float]]) -> Mapping[str, float]:
        """Run one step and return its report. Raises `CM3Error` if training has diverged: nothing more is written,
        and earlier files stay."""
        try:
            report = step(self.step_count, self.progress())
            if math.isfinite(report["loss"]):
                return report
            cause = f"the loss is {report['loss']}"
        except RuntimeError as error:  # torch's LinAlgError: the codebook's features are not finite
            if type(error).__name__ != "_LinAlgError":
                raise
            cause = str(error).partition(":")[2].strip() or str(error)
        raise CM3Error(
            f"{self.out_dir}, step {self.step_count}",
            f"training has diverged: {cause}",
            "lower the learning rate, and start in another folder",
        )

    def save_state(self) -> None:
        """Write `STATE`, atomically."""
        with atomic_path(self.out_dir / STATE) as temporary:
            torch.save(
                {
                    "identity": self.identity,
                    "step": self.step_count,
                    "seconds": self.seconds,
                    "trainer": self._trainer.state_dict(),
                },
                temporary,
            )

    @property
    def notes(self) -> dict[str, str]:
        """Return metadata about this run for its weights file."""
        return {
            "steps": str(self.step_count),
            "seconds": f"{self.seconds:.0f}",
            "run": self.identity,
        }

    def progress(self) -> float:
        """Fraction of the budget that is spent."""
        if self.options.steps is not None:
            return self.step_count / self.options.steps
        assert self.options.minutes is not None
        return self.seconds / (60.0 * self.options.minutes)

    def log(self, values: Mapping[str, float]) -> None:
        """Append a line to `LOG`: the step, the seconds, and `values`."""
        line = {"step": self.step_count, "seconds": round(self.seconds, 2), **values}
        self._log.write(json.dumps(line).encode() + b"\n")

    def train(
        self,
        step: Callable[[int, float], Mapping[str, float]],
        save: Callable[[bool], Path],
        *,
        label: str,
    ) -> Path:
        """Step until the budget is spent; returns the result of the last `save`.

        The first Ctrl-C or SIGTERM ends the run after the current step: it saves, then raises
        `KeyboardInterrupt`. A second one stops at once.

        Args:
            step: one update; maps the number of finished steps and the progress to the values to log,
                including `loss`.
            save: writes a checkpoint, the last time at the end; returns the weights' path. Its argument
                tells whether the run was stopped; then it should skip slow figures.
            label: label of the progress bar.
        """

        def checkpoint() -> Path:
            path = save(stop.received is not None)
            if self.options.on_checkpoint is not None:
                self.options.on_checkpoint(path)
            return path

        stop = StopSignals()
        path = self.out_dir / LOG
        # with the lines of an interrupted run
        before = path.read_bytes() if self.step_count and path.exists() else b""
        self._log = AppendedFile(path, before)
        last_saved = time.monotonic()
        started = last_saved - self.seconds
        with (
            stop,
            make_bar(
                total=100.0,
                unit="%",
                disable=not self.options.show_progress,
                desc=label,
                bar_format="{desc} {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}",
            ) as bar,
        ):
            while self.progress() < 1.0 and stop.received is None:
                self._step(step, started, bar)
                if self._is_due(time.monotonic() - last_saved):
                    checkpoint()
                    last_saved = time.monotonic()
                    self.seconds = last_saved - started
            path = checkpoint()
        if stop.received is not None:
            raise KeyboardInterrupt
        return path


def _read_state(path: Path) -> dict[str, Any]:
    """Read a file written by `TrainingRun.save_state`. Raises `CheckpointError` for any other content."""
    try:
        with open_regular(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        types = {"identity": str, "step": int, "seconds": float, "trainer": dict}
        if not all(isinstance(state[name], kind) for name, kind in types.items()):
            raise TypeError("values of other types")
        json.loads(state["identity"])
    except Exception as error:  # torch's unpickler can raise any exception
        raise _unreadable(path, error) from error
    return dict(state)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(path),
        f"is not a readable training state ({type(error).__name__})",
        "delete it to start from scratch",
    )


def check_order(
    trainer: str,
    images_NHWC: PixelArray,
    size: tuple[int, int],
    options: RunOptions,
) -> None:
    """Raise `DataError` unless exactly one budget and at least one valid picture are given.

    Pictures are uint8 [N, H, W, 3] of (height, width) = `size`.
    """
    if (options.minutes is None) == (options.steps is None):
        raise DataError(trainer, "needs either minutes or steps", "give exactly one of them")
    height, width = size
    if (
        images_NHWC.ndim != 4
        or images_NHWC.shape[1:] != (height, width, 3)
        or images_NHWC.dtype != np.uint8
        or not len(images_NHWC)
    ):
        raise DataError(
            "training pictures",
            f"{images_NHWC.dtype} {list(images_NHWC.shape)}, expected uint8 "
            f"[N, {height}, {width}, 3]",
            "resize with cm3core.images.fit",
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe the differences of two nested mappings of plain values.

    >>> differences({"steps": 2, "training": {"seed": 0}}, {"steps": 2, "training": {"seed": 1}})
    ['training.seed was 0, is 1']
    """
    out: list[str] = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            out += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            out.append(f"{prefix}{key} was {old}, is {new}")
    return out
