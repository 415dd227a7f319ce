"""The trackers of a run: which it has, and telling them. A tracker that fails is left out, and nothing
else happens."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from cm3core._version import is_ours
from cm3core.config.schema import check_config
from cm3core.errors import MissingPackageError
from cm3core.interfaces.component import chosen_name
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
from cm3core.plugins.registry import built, marked

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe

#: Event -> the method that is told it.
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
    """The (name, tracker) that a run has: those of `train.trackers`, or those of cm3leon's own default
    ones whose packages are installed.

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
                f"note: the tracker {name!r} is left out, because {error.cause}: {error.next_step}, or "
                "train.trackers=[] for none; metrics.jsonl has what it records",
                file=sys.stderr,
            )
    return found


def _defaults(registry: Registry) -> list[tuple[str, TrackerConfig]]:
    """Of this distribution only: what is installed sees nobody's training unasked."""
    own = {info.name for info in registry.plugins if is_ours(info.distribution)}
    found: list[tuple[str, TrackerConfig]] = []
    for name in marked(registry, "tracker", "is_default"):
        short = name.rpartition("/")[2]
        for owner in registry.owners("tracker", short):
            if owner in own and name in (short, f"{owner}/{short}"):
                config_class: Any = registry.config_class("tracker", f"{owner}/{short}")
                found.append((short, config_class()))
    return found


class Tracking:
    """Tells a run's trackers what happens.

    Args:
        trackers: name -> tracker; none in all processes but the first.
        device: where the run trains: its generators are none of a tracker's business.
    """

    def __init__(
        self, trackers: Sequence[tuple[str, Tracker]] = (), device: torch.device | None = None
    ) -> None:
        self._trackers = list(trackers)
        self._devices = [device] if device is not None and device.type == "cuda" else []

    def __bool__(self) -> bool:
        """Whether there is one to tell."""
        return bool(self._trackers)

    def tell(self, event: object) -> None:
        """Tell an event, see `METHODS`."""
        self._call(METHODS[type(event)], event)

    def metrics(self, step: int, values: Mapping[str, float], *, validation: bool = False) -> None:
        """Metrics of training or of a validation."""
        event = Validated if validation else Measured
        self.tell(event(step, MappingProxyType(dict(values))))

    def picture(self, step: int, name: str, pixels_HWC: PixelArray) -> None:
        """A sheet of pictures uint8 [height, width, 3]."""
        if self:
            copy = pixels_HWC.copy()
            copy.setflags(write=False)
            self.tell(PictureDrawn(step, name, copy))

    def flush(self) -> None:
        """What was told is to be written."""
        self._call("flush")

    def close(self) -> None:
        """The end."""
        self._call("close")
        self._trackers = []

    def _call(self, method: str, *event: object) -> None:
        for name, tracker in list(self._trackers):
            if getattr(type(tracker), method) is getattr(Tracker, method):
                continue  # not overridden: nothing to keep
            try:
                with torch.random.fork_rng(self._devices):
                    getattr(tracker, method)(*event)
            except (Exception, SystemExit) as error:
                self._leave_out(name, tracker, method, error)

    def _leave_out(self, name: str, tracker: Tracker, method: str, error: BaseException) -> None:
        """Say once what happened; it gets no more events."""
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        tqdm.write(
            f"note: the tracker {name!r} is left out from now on, because its {method} failed "
            f"({first}); training goes on, and metrics.jsonl has what it records",
            file=sys.stderr,
        )
        self._trackers = [(other, one) for other, one in self._trackers if one is not tracker]
        if method != "close":
            with suppress(Exception, SystemExit):  # fails for the same reason, already reported
                tracker.close()
