"""Conformance kit of trackers.

class TestMine(TrackerContract):
    config = MyTrackerConfig()
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from hypothesis import strategies as st

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
    Validated,
)
from cm3kits._laws import Contract

_NAMES = st.sampled_from(["train/image_loss", "train/learning_rate", "validation/valid/text_loss"])
_VALUES = st.dictionaries(
    _NAMES, st.floats(-1e6, 1e6) | st.sampled_from([float("nan"), float("inf")]), max_size=3
)


class TrackerContract(Contract[Tracker]):
    """Laws of a tracker. Events are reported in a temporary folder. If a tracker talks to a service, `make` must build
    it with a stand-in for the service."""

    kind: ClassVar[str] = "tracker"
    max_examples: ClassVar[int | None] = None

    def build(self, config: Any) -> Tracker:
        """See `TrackerConfig.build`."""
        tracker: Tracker = config.build()
        return tracker

    def use(self, component: Tracker) -> None:
        """Report a run of three steps."""
        with _folder() as folder:
            events = [StepDone(step, 10, 1.5, 0.1) for step in (1, 2, 3)]
            _tell(component, [_start(folder, 0), *events, RunInterrupted(3)])
            component.close()

    def law_every_order_of_events_is_taken(self, data: st.DataObject) -> None:
        """From a start to an end, an interruption or a failure, whatever is between."""
        with _folder() as folder:
            events = [_start(folder, 0), *data.draw(_some(folder)), data.draw(_last(folder))]
            tracker = self.make_again()
            _tell(tracker, events)
            tracker.close()

    def law_a_resumed_run_is_taken(self, data: st.DataObject) -> None:
        """A second tracker goes on in the same folder, from a step that the first one may have passed."""
        with _folder() as folder:
            for step in (0, data.draw(st.integers(0, 9))):
                tracker = self.make_again()
                last = data.draw(_last(folder))
                _tell(tracker, [_start(folder, step), *data.draw(_some(folder)), last])
                tracker.close()

    def law_a_run_without_events_is_taken(self) -> None:
        """It may end, or be closed, at any time, also before it began."""
        self.make_again().close()
        with _folder() as folder:
            tracker = self.make_again()
            tracker.on_start(_start(folder, 0))
            tracker.flush()
            tracker.close()

    def law_events_are_not_changed(self, data: st.DataObject) -> None:
        """What an event holds is another tracker's too."""
        with _folder() as folder:
            tracker = self.make_again()
            for event in [_start(folder, 0), *data.draw(_some(folder)), data.draw(_last(folder))]:
                before = copy.deepcopy(_plain(event))
                _tell(tracker, [event])
                assert _same(_plain(event), before), f"{type(event).__name__} was changed"
            tracker.close()

    def law_training_draws_the_same_numbers(self, data: st.DataObject) -> None:
        """The global generators of `random` and numpy are as they were: training goes on as without it."""
        with _folder() as folder:
            tracker = self.make_again()
            before = random.getstate(), _numpy_state()
            _tell(tracker, [_start(folder, 0), *data.draw(_some(folder)), data.draw(_last(folder))])
            tracker.close()
            assert random.getstate() == before[0], "it drew from `random`"
            assert _numpy_state() == before[1], "it drew from numpy's global generator"


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _start(folder: Path, step: int) -> RunStarted:
    recipe = MappingProxyType({"train": MappingProxyType({"steps": 10, "learning_rate": 1e-3})})
    return RunStarted(folder, "mine", recipe, "0123456789ab", step, 1000, 900, "cm3 train mine")


def _some(folder: Path) -> st.SearchStrategy[list[Any]]:
    """Events between start and end, steps growing."""
    values = _VALUES.map(MappingProxyType)
    one = st.one_of(
        st.just(StepDone(0, 10, 1.5, 0.1)),
        st.builds(Measured, st.just(0), values),
        st.builds(Validated, st.just(0), values),
        st.builds(PictureDrawn, st.just(0), st.just("samples"), st.builds(_picture)),
        st.just(CheckpointSaved(0, folder / "step")),
    )
    return st.lists(st.tuples(st.integers(1, 3), one), max_size=6).map(_growing)


def _growing(events: list[tuple[int, Any]]) -> list[Any]:
    step, made = 0, []
    for by, event in events:
        step += by
        made.append(replace(event, step=step))
    return made


def _last(folder: Path) -> st.SearchStrategy[Any]:
    values = _VALUES.map(MappingProxyType)
    return st.one_of(
        st.builds(RunEnded, st.just(99), st.just(folder / "step"), values),
        st.just(RunInterrupted(99)),
        st.just(RunFailed(99, "the loss is no longer finite")),
    )


def _picture() -> Any:
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels.setflags(write=False)
    return pixels


def _tell(tracker: Tracker, events: list[Any]) -> None:
    methods: dict[type[Any], Any] = {
        RunStarted: tracker.on_start,
        StepDone: tracker.on_step,
        Measured: tracker.on_metrics,
        Validated: tracker.on_validation,
        PictureDrawn: tracker.on_picture,
        CheckpointSaved: tracker.on_checkpoint,
        RunEnded: tracker.on_end,
        RunInterrupted: tracker.on_interrupt,
        RunFailed: tracker.on_failure,
    }
    for event in events:
        methods[type(event)](event)


def _plain(event: Any) -> dict[str, Any]:
    """The event's fields, mappings as dicts."""
    return {name: _dicts(value) for name, value in vars(event).items()}


def _dicts(value: Any) -> Any:
    if isinstance(value, (dict, MappingProxyType)):
        return {key: _dicts(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _same(now: Any, before: Any) -> bool:
    return repr(now) == repr(before)  # nan is nan


def _numpy_state() -> str:
    state = np.random.get_state(legacy=False)  # noqa: NPY002  # the global one is meant
    return repr(_dicts(state))
