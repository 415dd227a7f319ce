"""Kind `tracker`: the events of a training or tuning run -> a record elsewhere, or whatever a plugin does
when they happen.

A recipe names them in `train.trackers`. Events come in the order

    RunStarted (StepDone | Measured | Validated | PictureDrawn | CheckpointSaved)* (RunEnded | RunInterrupted | RunFailed)

Of several processes that train together the first one has trackers. An error of a tracker never ends a
training: it is reported once, and the tracker gets no more events of the run. Imports no torch.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.interfaces.component import ComponentConfig

if TYPE_CHECKING:
    from cm3core.document import PixelArray


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on after an interruption.

    Args:
        folder: the run's, the same each time it is resumed. A tracker may write into a folder of its own
            name there.
        name: the recipe's.
        recipe: section -> key -> value, complete, as YAML values.
        recipe_hash: 12 hexadecimal digits of the settings.
        step: optimiser steps done before; 0: it is new. What a tracker has of later steps is not part of
            the run: it was killed, and does those steps again.
        num_parameters: of the decoder.
        num_trained: of these, those that are trained.
        command: resumes the run.
    """

    folder: Path
    name: str
    recipe: Mapping[str, Mapping[str, Any]]
    recipe_hash: str
    step: int
    num_parameters: int
    num_trained: int
    command: str


@dataclass(frozen=True)
class StepDone:
    """An optimiser step was done.

    Args:
        step: steps done.
        tokens: tokens trained on.
        elapsed_s: seconds of training, over all sessions.
        progress: fraction of the training that is done, 0 to 1.
    """

    step: int
    tokens: int
    elapsed_s: float
    progress: float


@dataclass(frozen=True)
class Measured:
    """A line of metrics, every `train.log_every_steps` steps: what `metrics.jsonl` has.

    Args:
        step: steps done.
        values: name, such as "train/image_loss", -> value; not always finite.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Validated:
    """The validation splits were measured.

    Args:
        step: steps done.
        values: name, such as "validation/valid/image_loss", -> value.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class PictureDrawn:
    """A sheet of sample pictures was drawn.

    Args:
        step: steps done.
        name: what it shows, "samples".
        pixels_HWC: uint8 [height, width, 3], which can't be written to.
    """

    step: int
    name: str
    pixels_HWC: PixelArray


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk. Later checkpoints may remove it (`train.keep_checkpoints`).

    Args:
        step: steps done when its weights were taken.
        folder: the checkpoint.
    """

    step: int
    folder: Path


@dataclass(frozen=True)
class RunEnded:
    """All steps are done, measured and saved.

    Args:
        step: steps done.
        checkpoint: the last one.
        values: the last value of each metric.
    """

    step: int
    checkpoint: Path
    values: Mapping[str, float]


@dataclass(frozen=True)
class RunInterrupted:
    """Ctrl-C or SIGTERM: a checkpoint was saved, from which the run can be resumed.

    Args:
        step: steps done.
    """

    step: int


@dataclass(frozen=True)
class RunFailed:
    """An error ends the process. The run can be resumed from its newest checkpoint.

    Args:
        step: steps done.
        error: the error, in words.
    """

    step: int
    error: str


@dataclass(kw_only=True)
class TrackerConfig(ComponentConfig):
    """Base of trackers' configs. With `is_default`, one of cm3leon's own is used by recipes that name
    none, where its packages are installed."""

    kind: ClassVar[str] = "tracker"

    def build(self) -> Tracker:
        """Return the tracker, which has seen no event. What is missing (a package, a key) is an error
        here, before training begins."""
        raise NotImplementedError


class Tracker(ABC):  # noqa: B024  # each method is optional
    """Is told the events of one run, in the process and the thread that train: training waits.

    Each method does nothing unless it is overridden, so a callback is a tracker that overrides what it
    is for. What an event holds must not be changed. Torch's generators are restored after each call."""

    def on_start(self, event: RunStarted) -> None:  # noqa: B027  # as all below: optional
        """The first event."""

    def on_step(self, event: StepDone) -> None:  # noqa: B027  # nothing unless overridden
        """After each step. Must be fast."""

    def on_metrics(self, event: Measured) -> None:  # noqa: B027  # nothing unless overridden
        """Metrics of training."""

    def on_validation(self, event: Validated) -> None:  # noqa: B027  # nothing unless overridden
        """Metrics of the validation splits."""

    def on_picture(self, event: PictureDrawn) -> None:  # noqa: B027  # nothing unless overridden
        """Sample pictures."""

    def on_checkpoint(self, event: CheckpointSaved) -> None:  # noqa: B027  # nothing unless overridden
        """A checkpoint; at the end of the run its last one too."""

    def on_end(self, event: RunEnded) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a run that is done."""

    def on_interrupt(self, event: RunInterrupted) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a session that was interrupted."""

    def on_failure(self, event: RunFailed) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a session that failed."""

    def flush(self) -> None:  # noqa: B027  # nothing unless overridden
        """Write what was told so far. Called before a checkpoint is saved: a run that is resumed from it
        tells only what came after."""

    def close(self) -> None:  # noqa: B027  # nothing unless overridden
        """Write everything and release what is held. Called once, after the last event, also after an
        error of this tracker."""
