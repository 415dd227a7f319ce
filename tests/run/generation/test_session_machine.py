"""The engine's session under any order of submissions, cancellations, steps, streams and waits: every
document is the one that is drawn alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cm3run.generation.engine import Cancelled, Finished, Request
from engine_parts import OTHERS, REQUESTS, WARM, make_decoder, make_engine
from profiles import examples

#: (which request, seed, name of a sampler or None).
ASKED = st.tuples(
    st.integers(0, len(REQUESTS) - 1), st.integers(0, 2), st.sampled_from([None, *OTHERS])
)


@cache
def decoder() -> Any:
    return make_decoder()


def request(asked: tuple[int, int, str | None]) -> Request:
    place, seed, sampler = asked
    return replace(REQUESTS[place], seed=seed, sampler=None if sampler is None else OTHERS[sampler])


@cache
def alone(asked: tuple[int, int, str | None]) -> Any:
    """What is drawn when nothing else is."""
    return make_engine(decoder(), WARM).complete([request(asked)])[0].document


class Sessions(RuleBasedStateMachine):
    """A session, what was submitted, and what came of it."""

    @initialize(
        max_rows=st.sampled_from([2, 5, 64]), details=st.booleans(), window=st.sampled_from([1, 4])
    )
    def open(self, max_rows: int, details: bool, window: int) -> None:
        self.engine = make_engine(decoder(), WARM, max_rows=max_rows, window=window)
        self.session = self.engine.open(details=details)
        self.submitted: dict[int, tuple[int, int, str | None]] = {}
        self.cancelled: set[int] = set()
        self.done: set[int] = set()

    @rule(asked=ASKED)
    def submit(self, asked: tuple[int, int, str | None]) -> None:
        number = self.session.submit(request(asked))
        assert number == len(self.submitted), "numbers count up"
        self.submitted[number] = asked

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._take(self.session.step())

    @rule(data=st.data())
    @precondition(lambda self: self.submitted)
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.submitted)))
        there = number not in self.done | self.cancelled
        assert self.session.cancel(number) == there
        if there:
            self.cancelled.add(number)

    @rule(asked=st.lists(ASKED, min_size=1, max_size=3), leave_after=st.none() | st.integers(1, 4))
    def stream(self, asked: list[tuple[int, int, str | None]], leave_after: int | None) -> None:
        """Beside the open session; who leaves a stream ends its work, and nothing else."""
        found = {}
        for place, event in enumerate(self.engine.stream([request(one) for one in asked]), 1):
            if isinstance(event, Finished):
                found[event.request] = event.completion.document
            if place == leave_after:
                break
        assert leave_after is not None or len(found) == len(asked)
        for number, document in found.items():
            assert document == alone(asked[number])

    @rule()
    def finish(self) -> None:
        self._take(list(self.session.events()))
        assert not self.session.busy
        assert self.done | self.cancelled == set(self.submitted)

    def _take(self, events: list[Any]) -> None:
        for event in events:
            number = event.request
            assert number not in self.done, "nothing comes after the end"
            if isinstance(event, Finished):
                assert number not in self.cancelled
                assert event.completion.document == alone(self.submitted[number])
                self.done.add(number)
            elif isinstance(event, Cancelled):
                assert number in self.cancelled
            else:
                assert number in self.submitted

    @invariant()
    def holds_no_more_rows_than_it_may(self) -> None:
        if hasattr(self, "session"):
            assert self.session.num_rows <= self.engine.max_rows
            waiting = {row.number for row in self.session.waiting}
            assert not waiting & (self.done | self.cancelled)

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.finish()


def test_any_order_of_requests() -> None:
    own = settings(max_examples=examples(6), stateful_step_count=12, deadline=None)
    run_state_machine_as_test(Sessions, settings=own)
