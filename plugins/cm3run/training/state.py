"""A training run as an object, as callbacks see it, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from cm3run.processes import Processes
from cm3run.training.loss import GROUPS
from cm3run.training.metrics import MetricsLog, SpeedMeter
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.parallel import OneProcess
from cm3run.training.tracking import Tracking

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.build import Components
    from cm3run.checkpoint.words import TrainingWords
    from cm3run.training.loader import BatchLoader
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
    #: Those of the training texts, if they are known.
    words: TrainingWords | None = None
    #: Optimiser steps done.
    step: int = 0
    #: Seconds of training, over all sessions.
    elapsed_s: float = 0.0
    #: Tokens trained on.
    tokens: int = 0
    #: The model that it started from, see `CheckpointState.base`.
    base: dict[str, str] = field(default_factory=dict)
    #: Told what happens; empty in all processes but the first.
    trackers: Tracking = field(default_factory=Tracking)
    #: The newest metrics, by name.
    metrics: dict[str, float] = field(default_factory=dict)
    #: Norm of the last gradient before clipping; read only when it is logged, because reading it
    #: synchronises a GPU.
    gradient_norm: Tensor | None = None
    #: Sums of losses since the last log, see `Decoder.loss_sums`.
    sums_G2: Tensor = field(default_factory=lambda: torch.zeros(len(GROUPS), 2))
    speed: SpeedMeter = field(default_factory=SpeedMeter)
    steps_speed: SpeedMeter = field(default_factory=SpeedMeter)
    #: Seconds that the last validation took.
    validation_s: float = 0.0
    #: Seconds since the last log: waiting for data, computing the step, everything but validation.
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
        # one after every so many steps, and one at the end
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


#: Called after every step, in order; anything that draws random numbers must use its own generator.
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
        was_finished: whether the run had been finished before, so that nothing was trained.
    """

    checkpoint: Path
    step: int
    elapsed_s: float
    tokens: int
    metrics: dict[str, float]
    peak_memory_bytes: int
    peak_gpu_bytes: int = 0
    was_finished: bool = False
