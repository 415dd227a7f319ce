"""Training under any order of kills, interruptions and resumptions: the weights and the record are those of
a run that nothing disturbed."""

from __future__ import annotations

import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cm3core.plugins import Registry, load_registry
from cm3run.checkpoint import latest_checkpoint
from cm3run.training import TrainingInterrupted, train
from cm3run.training.metrics import read_metrics
from cm3run.training.state import TrainResult, TrainState
from profiles import examples
from squares import PARTS, squares, weights

STEPS = 7
OWN = (
    f"train.steps={STEPS}",
    "train.log_every_steps=2",
    "train.validate_every_steps=4",
    "train.validation_splits=[held]",
    "decoder.num_layers=1",
    "train.trackers=[]",
)


class Killed(BaseException):
    """Ends a run without a checkpoint, as SIGKILL does."""


@cache
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"], environ={})


@cache
def cache_folder() -> Path:
    return Path(tempfile.mkdtemp())


def run(out: Path, *overrides: str, stop: Any = None) -> TrainResult:
    recipe = squares(registry(), cache_folder(), [*OWN, *overrides])
    callbacks = [] if stop is None else [stop]
    return train(recipe, out, registry(), progress=False, callbacks=callbacks)


def record(out: Path) -> list[dict[str, float]]:
    """The metrics without what tells of time, and without the norm of the last gradient, which no checkpoint
    has: a run that is stopped after its last step is told the rest of it later."""
    return [
        {
            name: value
            for name, value in line.items()
            if not _is_of_time(name) and (name, line["step"]) != ("train/gradient_norm", STEPS)
        }
        for line in read_metrics(out)
    ]


def _is_of_time(name: str) -> bool:
    return name.startswith("time/") or name in ("elapsed_s", "tokens_per_second", "seconds_left")


@cache
def undisturbed() -> tuple[bytes, str]:
    """Weights and record."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        return weights(run(out)), repr(record(out))


class Resuming(RuleBasedStateMachine):
    """A run, and the step that it certainly has a checkpoint of."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.out = self.root / "run"
        self.saved, self.finished = 0, False

    def teardown(self) -> None:
        """Whatever happened, it can be finished."""
        try:
            result = run(self.out)
            assert result.step == STEPS
            assert (weights(result), repr(record(self.out))) == undisturbed()
        finally:
            shutil.rmtree(self.root)

    @rule(
        more=st.integers(1, STEPS),
        saves=st.sampled_from(["null", "1", "2"]),
        in_background=st.booleans(),
    )
    @precondition(lambda self: not self.finished)
    def killed(self, more: int, saves: str, in_background: bool) -> None:
        at = min(self.saved + more, STEPS)

        def stop(state: TrainState) -> None:
            if state.step == at:
                raise Killed

        overrides = (
            f"train.checkpoint_every_steps={saves}",
            f"train.save_in_background={str(in_background).lower()}",
        )
        try:
            run(self.out, *overrides, stop=stop)
        except Killed:
            self._look(at_most=at)
        else:
            raise AssertionError("it was not killed")

    @rule(more=st.integers(1, STEPS))
    @precondition(lambda self: not self.finished)
    def interrupted(self, more: int) -> None:
        at = min(self.saved + more, STEPS)

        def stop(state: TrainState) -> None:
            if state.step == at:
                signal.raise_signal(signal.SIGINT)

        try:
            run(self.out, stop=stop)
        except TrainingInterrupted:
            assert at < STEPS
        else:
            assert at == STEPS, "only the last step is the end anyway"
            self.finished = True
        self._look(at_most=at)
        assert self.saved == at, "Ctrl-C saves"

    @rule()
    @precondition(lambda self: not self.finished)
    def killed_while_writing(self) -> None:
        """A part of a checkpoint is no checkpoint."""
        folder = self.out / "checkpoints" / ".step-00000099.abcd.cm3-writing"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")

    @rule()
    @precondition(lambda self: self.finished)
    def started_again(self) -> None:
        """One that is finished trains nothing."""
        assert run(self.out).was_finished

    def _look(self, at_most: int) -> None:
        newest = latest_checkpoint(self.out)
        step = 0 if newest is None else int(newest.name.rpartition("-")[2])
        assert self.saved <= step <= at_most, "no checkpoint is lost, none is made up"
        self.saved = step

    @invariant()
    def the_record_is_whole(self) -> None:
        if self.out.exists():
            steps = [line["step"] for line in read_metrics(self.out)]
            assert steps == sorted(steps)


def test_any_order_of_kills_and_resumptions() -> None:
    own = settings(max_examples=examples(2), stateful_step_count=3, deadline=None)
    run_state_machine_as_test(Resuming, settings=own)
