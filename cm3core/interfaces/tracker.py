"""Kind `tracker`: the events of a training or tuning run -> a record elsewhere, or any other reaction of a
plugin.

A recipe names trackers in `train.trackers`. Events come in the order

    RunStarted (StepDone | Measured | Validated | PictureDrawn | CheckpointSaved)* (RunEnded | RunInterrupted |
    RunFailed)

If several processes train together, the first one has the trackers. An error of a tracker never ends
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
    """A run begins, or continues after an interruption.

    Args:
        folder: the run's, the same each time it is resumed. A tracker may write into a subfolder of its own
            name.
        name: the recipe's.
        recipe: section -> key -> value, complete, as YAML values.
        recipe_hash: 12 hexadecimal digits of the settings.
        step: earlier optimiser steps; 0: a new run. Any records of later steps are obsolete:
            the run was killed, and repeats those steps.
        num_parameters: of the decoder.
        num_trained: number of trained parameters.
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
    """An optimiser step has finished.

    Args:
        step: steps done.
        tokens: tokens trained on.
        elapsed_s: seconds of training, over all sessions.
        progress: fraction of the training done, 0 to 1.
    """

    step: int
    tokens: int
    elapsed_s: float
    progress: float


@dataclass(frozen=True)
class Measured:
    """A line of metrics, every `train.log_every_steps` steps, as in `metrics.jsonl`.

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
    """A sheet of sample pictures was generated.

    Args:
        step: steps done.
        name: its content, "samples".
        pixels_HWC: uint8 [height, width, 3], read-only.
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
    """Base of trackers' configs. One of cm3leon's own with `is_default` is used by recipes that name
    none, if its packages are installed."""

    kind: ClassVar[str] = "tracker"

    def build(self) -> Tracker:
        """Return the tracker, before any event. Raises if something is missing (a package, a key),
        so that the error comes before training begins."""
        raise NotImplementedError


class Tracker(ABC):  # noqa: B024  # each method is optional
    """Receives the events of one run, in the training process and thread: training waits for it.

    Each method does nothing unless it is overridden, so a callback is a tracker that overrides a single
    method. Events must not be modified. Torch's generators are restored after each call."""

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
        """A checkpoint, including the last one at the end of the run."""

    def on_end(self, event: RunEnded) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a finished run."""

    def on_interrupt(self, event: RunInterrupted) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a session that was interrupted."""

    def on_failure(self, event: RunFailed) -> None:  # noqa: B027  # nothing unless overridden
        """The last event of a session that failed."""

    def flush(self) -> None:  # noqa: B027  # nothing unless overridden
        """Write all events so far. Called before a checkpoint is saved: a run resumed from it
        sends only later events."""

    def close(self) -> None:  # noqa: B027  # nothing unless overridden
        """Write everything and release resources. Called once, after the last event, even after an
        error of this tracker."""
