"""The trackers' kit: right trackers pass, and each law fails for one that is wrong in just that way."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cm3core.errors import DataError
from cm3core.interfaces.tracker import Tracker, TrackerConfig
from cm3kits.tracker import TrackerContract
from kit_mutants import assert_covers, assert_law_fails, cases


class Lines(Tracker):
    """Right: a line for each event, in a file of its own."""

    file: Any = None

    def on_start(self, event: Any) -> None:
        self.file = (event.folder / "lines.jsonl").open("a")

    def on_metrics(self, event: Any) -> None:
        self.file.write(json.dumps([event.step, dict(event.values)]))

    def flush(self) -> None:
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass(kw_only=True)
class LinesConfig(TrackerConfig):
    def build(self) -> Lines:
        return Lines()


class TestRight(TrackerContract):
    config = LinesConfig()


class Silent(Tracker):
    """Right: not interested."""


@dataclass(kw_only=True)
class SilentConfig(TrackerConfig):
    def build(self) -> Silent:
        return Silent()


class TestRightAndSilent(TrackerContract):
    config = SilentConfig()


class WantsFinite(Silent):
    def on_metrics(self, event: Any) -> None:
        assert all(np.isfinite(value) for value in event.values.values())


class WantsMetricsFirst(Silent):
    last = None

    def on_metrics(self, event: Any) -> None:
        self.last = event.step

    def on_end(self, event: Any) -> None:
        if self.last is None:
            raise DataError("mine", "there are no metrics", "log some")


class NewFolder(Silent):
    def on_start(self, event: Any) -> None:
        try:
            (event.folder / "mine").mkdir()
        except FileExistsError as error:
            raise DataError("mine", "is there", "remove it") from error


class ClosesWhatIsNot(Silent):
    file: Any = None

    def close(self) -> None:
        if self.file is None:
            raise DataError("mine", "was not opened", "open it")


class ChangesValues(Silent):
    def on_metrics(self, event: Any) -> None:
        object.__setattr__(event, "values", {**event.values, "mine": 1.0})


class DrawsAtRandom(Silent):
    def on_metrics(self, event: Any) -> None:
        random.random()


class DrawsFromNumpy(Silent):
    def on_step(self, event: Any) -> None:
        np.random.random()  # noqa: NPY002  # what is planted


MUTANTS = {
    "every_order_of_events_is_taken": [WantsFinite, WantsMetricsFirst],
    "a_resumed_run_is_taken": [NewFolder],
    "a_run_without_events_is_taken": [ClosesWhatIsNot],
    "events_are_not_changed": [ChangesValues],
    "training_draws_the_same_numbers": [DrawsAtRandom, DrawsFromNumpy],
}


@pytest.mark.parametrize(("law", "wrong"), cases(MUTANTS))
def test_a_wrong_tracker_fails(law: str, wrong: Any) -> None:
    assert_law_fails(TrackerContract, law, {"make": lambda self: wrong()})


def test_every_law_has_a_mutant() -> None:
    assert_covers(TrackerContract, MUTANTS)
