"""A training run's state, as callbacks see it, its result, and its progress: a bar on a terminal, otherwise a line per
minute.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from cm3run import progress
from cm3run.processes import Processes
from cm3run.training.metrics import GROUPS, MetricsLog, SpeedMeter, Tracking
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.parallel import OneProcess

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.build import Components
    from cm3run.checkpoint.words import TrainingWords
    from cm3run.training.packing import BatchLoader
    from cm3run.training.preparation import Preparation


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: a checkpoint has been saved. The message shows how to resume."""


@dataclass(eq=False)
class TrainState:
    """A run, as callbacks see it after every step."""

    recipe: Recipe
    out_dir: Path
    components: Components
    preparation: Preparation
    decoder: nn.Module
    optimizer: OptimizerGroup
    schedule: Schedule
    loader: BatchLoader
    log: MetricsLog
    device: torch.device
    autocast_dtype: torch.dtype | None
    processes: Processes
    #: How the processes share the decoder.
    parallel: OneProcess = field(default_factory=OneProcess)
    #: The words of the training texts, if known.
    words: TrainingWords | None = None
    #: Optimiser steps done.
    step: int = 0
    #: Seconds of training, over all sessions.
    elapsed_s: float = 0.0
    #: Tokens trained on.
    tokens: int = 0
    #: The model that it started from, see `CheckpointState.base`.
    base: dict[str, str] = field(default_factory=dict)
    #: Receives the run's events; empty in all processes except the first.
    trackers: Tracking = field(default_factory=Tracking)
    #: The newest metrics, by name.
    metrics: dict[str, float] = field(default_factory=dict)
    #: Norm of the last gradient before clipping; read only for logging, because reading it
    #: synchronises a GPU.
    gradient_norm: Tensor | None = None
    #: Sums of losses since the last log, see `Decoder.loss_sums`.
    sums_G2: Tensor = field(default_factory=lambda: torch.zeros(len(GROUPS), 2))
    speed: SpeedMeter = field(default_factory=SpeedMeter)
    steps_speed: SpeedMeter = field(default_factory=SpeedMeter)
    #: Duration of the last validation in seconds.
    validation_s: float = 0.0
    #: Seconds since the last log: waiting for data, computing steps, and everything else except validation.
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("data", "step", "all"), 0.0)
    )

    @property
    def progress(self) -> float:
        """Fraction of the training done, 0..1."""
        return self.schedule.progress(self.step, self.elapsed_s)

    @property
    def seconds_left(self) -> float:
        """Estimated seconds left; infinite before the first steps."""
        if self.schedule.minutes is not None:
            return max(0.0, 60 * self.schedule.minutes - self.elapsed_s)
        assert self.schedule.steps is not None
        rate, every = self.steps_speed.rate, self.recipe.train.validate_every_steps
        # one every `every` steps, and one at the end
        validations = -(-self.schedule.steps // every) - self.step // every
        left_s = (self.schedule.steps - self.step) / rate if rate > 0 else math.inf
        return left_s + validations * self.validation_s

    def autocast(self) -> Any:
        """The autocast context for forward passes."""
        return (
            nullcontext()
            if self.autocast_dtype is None
            else torch.autocast(self.device.type, self.autocast_dtype)
        )


#: Called after every step, in order; must use its own generator for random numbers.
Callback: TypeAlias = Callable[[TrainState], None]


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Args:
        checkpoint: the last checkpoint.
        step, elapsed_s, tokens: totals over all sessions.
        metrics: the last value of each metric.
        peak_memory_bytes: largest resident memory of this process.
        peak_gpu_bytes: largest memory allocated on the GPU; 0 without one.
        was_finished: whether the run was already finished, so that nothing was trained.
    """

    checkpoint: Path
    step: int
    elapsed_s: float
    tokens: int
    metrics: dict[str, float]
    peak_memory_bytes: int
    peak_gpu_bytes: int = 0
    was_finished: bool = False


class ProgressBar:
    """The progress bar, in steps, or in seconds if the run's length is in minutes.

    If stderr is not a terminal, a line is written to it once a minute, to keep log files readable.
    """

    def __init__(self, state: TrainState, show: bool) -> None:
        self.state = state
        self._writes_lines = show and not progress.bars_shown()
        self._last_line = time.monotonic()
        by_clock = state.schedule.minutes is not None
        total = (
            60 * state.schedule.minutes
            if state.schedule.minutes is not None
            else state.schedule.steps
        )
        self.bar = progress.make_bar(
            total=total,
            initial=min(self._now(), total or 0),
            disable=not show or self._writes_lines,
            desc=state.recipe.name,
            mininterval=0.5,
            unit="s" if by_clock else "step",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} {unit}{postfix}",
        )

    def _now(self) -> float:
        return self.state.elapsed_s if self.state.schedule.minutes is not None else self.state.step

    def update(self) -> None:
        """Show the current values."""
        state = self.state
        left = state.seconds_left
        clock = f"{int(left) // 60}:{int(left) % 60:02d} left" if math.isfinite(left) else ""
        parts = [clock, f"{state.speed.rate:,.0f} tokens/s"]
        losses = {name: state.metrics.get(f"train/{name}_loss") for name in ("image", "text")}
        parts += [f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None]
        shown = ", ".join(part for part in parts if part)
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(max(0.0, min(self._now(), self.bar.total) - self.bar.n))

        now = time.monotonic()
        if self._writes_lines and now - self._last_line >= progress.SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(
                f"{state.recipe.name}: step {state.step:,}, {100 * state.progress:.0f}%, {shown}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
