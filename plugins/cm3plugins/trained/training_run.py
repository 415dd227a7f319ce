"""One training run: its budget and clock, its log, and the state that it resumes from.

What is trained, and on what, is up to the `Trainer`; a run calls it step by step. A run that was
stopped or killed and resumed makes the same steps as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, CM3Error, DataError
from cm3core.files import atomic_path, open_regular
from cm3core.progress import make_bar
from cm3run.stop_signals import StopSignals


def edge_error(error_BCHW: Tensor) -> Tensor:
    """Mean absolute first differences of an error, horizontal plus vertical.

    Penalises blur and ringing.
    """
    return error_BCHW.diff(dim=-1).abs().mean() + error_BCHW.diff(dim=-2).abs().mean()


WEIGHTS, STATE, LOG = "model.safetensors", "state.pt", "log.jsonl"


class Trainer(Protocol):
    """Network, optimisers, and everything else that the next step depends on."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain containers of tensors."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


class RunSettings(Protocol):
    """How often a run writes."""

    log_every_steps: int
    checkpoint_every_minutes: float
    checkpoint_every_steps: int | None


class TrainingRun:
    """The loop around a trainer.

    Args:
        out_dir: gets `STATE` and `LOG`.
        trainer: what is trained.
        settings: how often to log and save.
        minutes: wall-clock budget (resumed time counts), or `steps`: number of updates; exactly
            one.
        facts: values that a resumed run must share with the stopped one, as plain values; the
            budget is added.
    """

    def __init__(
        self,
        out_dir: Path,
        trainer: Trainer,
        settings: RunSettings,
        *,
        minutes: float | None,
        steps: int | None,
        facts: Mapping[str, Any],
    ) -> None:
        self.out_dir, self.minutes, self.steps = out_dir, minutes, steps
        self._trainer, self._settings = trainer, settings
        self.step_count, self.seconds = 0, 0.0
        self.identity = json.dumps({**facts, "minutes": minutes, "steps": steps}, sort_keys=True)

    def resume(self) -> None:
        """Load `STATE` if there is one.

        Raises:
            CheckpointError: it is unreadable or belongs to another run.
        """
        path = self.out_dir / STATE
        if not path.exists():
            return
        state = _read_state(path)
        if state["identity"] != self.identity:
            changes = differences(json.loads(state["identity"]), json.loads(self.identity))
            raise CheckpointError(
                str(path),
                f"it belongs to a run with another configuration: {', '.join(changes)}",
                "resume with the same recipe and budget, or choose another folder",
            )
        try:
            self._trainer.load_state_dict(state["trainer"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise _unreadable(path, error) from error
        self.step_count, self.seconds = state["step"], state["seconds"]

    def _finite(self, step: Callable[[int, float], Mapping[str, float]]) -> Mapping[str, float]:
        """One step's report. Raises `CM3Error` when the training has diverged: nothing is written
        then, and what was written before stays."""
        try:
            report = step(self.step_count, self.progress())
            if math.isfinite(report["loss"]):
                return report
            cause = f"the loss is {report['loss']}"
        except RuntimeError as error:  # torch's LinAlgError: a codebook of features not finite
            if type(error).__name__ != "_LinAlgError":
                raise
            cause = str(error).partition(":")[2].strip() or str(error)
        raise CM3Error(
            f"{self.out_dir}, step {self.step_count}",
            f"the training has diverged: {cause}",
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
        """Metadata of a weights file about the run that made it."""
        return {
            "steps": str(self.step_count),
            "seconds": f"{self.seconds:.0f}",
            "run": self.identity,
        }

    def progress(self) -> float:
        """Fraction of the budget spent."""
        if self.steps is not None:
            return self.step_count / self.steps
        assert self.minutes is not None
        return self.seconds / (60.0 * self.minutes)

    def log(self, values: Mapping[str, float]) -> None:
        """Append a line to `LOG`: the step, the seconds, and `values`."""
        line = {"step": self.step_count, "seconds": round(self.seconds, 2), **values}
        with (self.out_dir / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def train(
        self,
        step: Callable[[int, float], Mapping[str, float]],
        save: Callable[[bool], Path],
        *,
        label: str,
        show_progress: bool = True,
        on_checkpoint: Callable[[Path], None] | None = None,
    ) -> Path:
        """Step until the budget is spent; returns what the last `save` returned.

        The first Ctrl-C or SIGTERM ends the run after its step: it is saved, then
        `KeyboardInterrupt` is raised. A second one stops at once.

        Args:
            step: one update; maps the number of steps done and the progress to the values to log,
                including `loss`.
            save: writes a checkpoint, the last time at the end; returns the weights' path. Given
                whether the run was stopped, which should not wait for figures.
            label: of the progress bar.
            show_progress: a progress bar on stderr.
            on_checkpoint: called with the weights' path after each checkpoint.
        """

        def checkpoint() -> Path:
            path = save(stop.received is not None)
            if on_checkpoint is not None:
                on_checkpoint(path)
            return path

        settings, stop = self._settings, StopSignals()
        (self.out_dir / LOG).touch()
        last_saved = time.monotonic()
        started = last_saved - self.seconds
        with (
            stop,
            make_bar(
                total=100.0,
                unit="%",
                disable=not show_progress,
                desc=label,
                bar_format="{desc} {percentage:5.1f}% |{bar}| {elapsed}<{remaining} {postfix}",
            ) as bar,
        ):
            while self.progress() < 1.0 and stop.received is None:
                report = self._finite(step)
                self.step_count += 1
                self.seconds = time.monotonic() - started
                bar.update(min(100.0 * self.progress(), 100.0) - bar.n)
                if self.step_count % settings.log_every_steps == 0:
                    bar.set_postfix_str(f"step {self.step_count} loss {report['loss']:.4f}")
                    self.log(report)
                due = (
                    settings.checkpoint_every_steps is not None
                    and self.step_count % settings.checkpoint_every_steps == 0
                )
                if due or time.monotonic() - last_saved > 60.0 * settings.checkpoint_every_minutes:
                    checkpoint()
                    last_saved = time.monotonic()
                    self.seconds = last_saved - started
            path = checkpoint()
        if stop.received is not None:
            raise KeyboardInterrupt
        return path


def _read_state(path: Path) -> dict[str, Any]:
    """What `TrainingRun.save_state` wrote. Raises `CheckpointError` if the file holds anything else."""
    try:
        with open_regular(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
        types = {"identity": str, "step": int, "seconds": float, "trainer": dict}
        if not all(isinstance(state[name], kind) for name, kind in types.items()):
            raise TypeError("values of other types")
        json.loads(state["identity"])
    except Exception as error:  # torch's unpickler raises whatever the bytes lead it to
        raise _unreadable(path, error) from error
    return dict(state)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(path),
        f"not a readable state of plain tensors ({type(error).__name__})",
        "delete it to start from scratch",
    )


def check_order(
    trainer: str,
    images_NHWC: PixelArray,
    size: tuple[int, int],
    *,
    minutes: float | None,
    steps: int | None,
) -> None:
    """Raise `DataError` unless there is exactly one budget and at least one valid picture.

    Pictures are uint8 [N, H, W, 3] of (height, width) = `size`.
    """
    if (minutes is None) == (steps is None):
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
    """Readable differences of two nested mappings of plain values.

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
