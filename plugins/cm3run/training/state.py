"""A training run's state, as callbacks see it, its result, and its progress: a bar on a terminal, otherwise a line per
minute; what is due by the clock, and when a run stops early.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from cm3core.files import write_text
from cm3run import progress
from cm3run.json_text import parse_json
from cm3run.processes import Processes
from cm3run.training.metrics import GROUPS, MetricsLog, SpeedMeter, Tracking, TypicalDuration
from cm3run.training.optim import OptimizerGroup, Schedule
from cm3run.training.parallel import OneProcess

if TYPE_CHECKING:
    from cm3core.recipe import Recipe
    from cm3run.build import Components
    from cm3run.checkpoint.words import TrainingWords
    from cm3run.training.ahead import AheadLoader
    from cm3run.training.preparation import Preparation


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: a checkpoint has been saved. The message shows how to resume."""


class Cadence:
    """When something is due that takes time from training: at the start, and then by the clock, in at most a fifth of the
    time. It goes by a run's seconds, which all processes agree on.

    Args:
        minutes: between two times; None: never.
    """

    def __init__(self, minutes: float | None) -> None:
        self._every_s = math.inf if minutes is None else 60 * minutes
        self._next_s = math.inf if minutes is None else 0.0
        self._began_s: float | None = None
        self._costs_s: list[float] = []

    def start(self, elapsed_s: float) -> None:
        """Of a run that resumes: not due at once."""
        self._next_s = elapsed_s + self._every_s

    def due(self, elapsed_s: float) -> bool:
        """Whether it is due now, before the next step; the caller then does it. Called before each step."""
        if self._began_s is not None:
            self._costs_s = [*self._costs_s[-1:], elapsed_s - self._began_s]
            self._next_s = elapsed_s + max(self._every_s, 4 * self.cost_s)
            self._began_s = None
        if elapsed_s < self._next_s:
            return False
        self._began_s = elapsed_s
        return True

    @property
    def cost_s(self) -> float:
        """Seconds that it takes: the fewer of the last two, because a pause of the process is no cost."""
        return min(self._costs_s, default=0.0)

    @property
    def share(self) -> float:
        """The part of the time that it takes."""
        return self.cost_s / (self.cost_s + self._every_s) if self.cost_s else 0.0


#: In the run's folder: the held-out losses of a run with `train.patience`.
EARLY_STOPPING = "early_stopping.json"


class EarlyStopping:
    """Stops a run whose held-out loss no longer falls, and remembers the step of the lowest one.

    Args:
        patience: number of validations without a lower loss after which the run stops.
        losses: (step, loss) of earlier validations.
    """

    def __init__(self, patience: int, losses: Sequence[tuple[int, float]] = ()) -> None:
        self.patience, self.losses = patience, list(losses)

    @classmethod
    def of(cls, recipe: Recipe, out_dir: Path, step: int) -> EarlyStopping | None:
        """With the losses that a resumed run had up to this step; None: the recipe doesn't stop early."""
        if not recipe.train.patience:
            return None
        stored = _stored_losses(out_dir).get("losses", [])
        return cls(recipe.train.patience, [(at, loss) for at, loss in stored if at <= step])

    def add(self, step: int, loss: float) -> bool:
        """Record a validation; return whether its loss is the lowest so far.

        >>> stopping = EarlyStopping(2)
        >>> [stopping.add(step, loss) for step, loss in enumerate((5.0, 4.0, 4.5, 4.0))]
        [True, True, False, False]
        >>> stopping.best, stopping.stops
        ((1, 4.0), True)
        """
        before = self.best
        if math.isfinite(loss):
            self.losses.append((step, loss))
        return self.best != before

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the lowest loss, the first of equal ones; None before the first validation."""
        return min(self.losses, key=lambda one: one[1], default=None)

    @property
    def stops(self) -> bool:
        """Whether the last `patience` validations had no lower loss."""
        return bool(self.losses) and len(self.losses) - 1 - self._place >= self.patience

    @property
    def _place(self) -> int:
        assert self.best is not None
        return self.losses.index(self.best)

    def write(self, out_dir: Path, ended: str | None = None) -> None:
        """Store the losses. `ended`: the hash of the recipe under which the run has ended with its best checkpoint."""
        values = {"losses": self.losses, "ended": ended}
        write_text(out_dir / EARLY_STOPPING, json.dumps(values) + "\n")

    def in_words(self) -> str:
        """The losses in words."""
        assert self.best is not None
        (step, loss), (at, lowest) = self.losses[-1], self.best
        better = "the lowest so far" if step == at else f"lowest {lowest:.4f} at step {at:,}"
        return f"held-out loss {loss:.4f} at step {step:,}, {better}"


def ended_early(recipe: Recipe, out_dir: Path) -> bool:
    """Whether a run under this recipe has already ended with its best checkpoint."""
    return bool(recipe.train.patience) and _stored_losses(out_dir).get("ended") == recipe.hash


def _stored_losses(out_dir: Path) -> dict[str, Any]:
    """The contents of `EARLY_STOPPING`; empty if there is none, or it can't be read: the losses are then measured again."""
    try:
        path = out_dir / EARLY_STOPPING
        found = parse_json(path.read_bytes(), str(path))  # losses may be no numbers
        losses = [(int(step), float(loss)) for step, loss in found["losses"]]
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return {}
    return {"losses": losses, "ended": found.get("ended")}


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
    loader: AheadLoader
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
    steps_s: TypicalDuration = field(default_factory=TypicalDuration)
    #: When validations and sample pictures are due by the clock.
    cadences: dict[str, Cadence] = field(default_factory=dict)
    #: Stops the run by its held-out loss; None: never.
    early: EarlyStopping | None = None
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
        step_s, every = self.steps_s.seconds, self.recipe.train.validate_every_steps
        if step_s is None:
            return math.inf
        # one every `every` steps, and one at the end
        validations = -(-self.schedule.steps // every) - self.step // every
        left_s = (self.schedule.steps - self.step) * step_s + validations * self.validation_s
        return left_s / (1 - min(0.5, sum(one.share for one in self.cadences.values())))

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
