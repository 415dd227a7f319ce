"""Chains: results that take several requests, one after another, because what is asked next depends on
what came before. Many run side by side in one session.

A chain is a generator: it yields a `Step` and is sent its completion; events that it yields are passed
on; what it returns is its result. The same chain runs here and in the loop of `AsyncModel`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from cm3core.errors import GenerationError
from cm3core.faults import SEE_TRACEBACK, contained, parts_of, told
from cm3run.generation.engine import (
    Completion,
    Engine,
    Event,
    Failed,
    Finished,
    PictureGrown,
    Request,
    TextGrown,
    TokensDrawn,
)
from cm3run.model.jobs import Done

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Step:
    """What a chain asks of the engine next; `part`: number of what it makes, for its events."""

    request: Request
    part: int


Chain: TypeAlias = Generator[Step | Event, Completion | None, T]


def advance(
    chain: Chain[T], completion: Completion | None
) -> tuple[list[Event], Step | None, T | None]:
    """Send a chain its completion (None: begin). Returns its events, and its next step or its result."""
    events: list[Event] = []
    while True:
        with contained("reply"):
            try:
                thing = chain.send(completion)
            except StopIteration as end:
                return events, None, end.value
        if isinstance(thing, Step):
            return events, thing, None
        events.append(thing)
        completion = None


def placed(event: Event, number: int, part: int) -> Event:
    """A request's event as one of the chain `number`, which makes its `part`."""
    if isinstance(event, (TextGrown, PictureGrown, TokensDrawn)):
        return replace(event, request=number, segment=part)
    return replace(event, request=number)


def run_chains(
    engine: Engine, chains: Iterable[Chain[T]], *, details: bool = False
) -> Iterator[Event]:
    """Events of all chains, and a `Done` or a `Failed` for each, as they happen. Chains are numbered
    0, 1, ..., and taken when there is room for them.

    Args:
        engine: completes the requests.
        chains: not yet begun.
        details: also report tokens, pieces of text and partial pictures.
    """
    session = engine.open(details=details)
    running: dict[int, tuple[int, Chain[T], Step]] = {}
    source, exhausted = enumerate(chains), False

    def go_on(number: int, chain: Chain[T], completion: Completion | None) -> Iterator[Event]:
        try:
            events, step, result = advance(chain, completion)
            if step is not None:
                running[session.submit(step.request)] = number, chain, step
        except Exception as error:  # of one of the chains: the others go on
            yield Failed(number, failure(error))
            return
        for event in events:
            yield replace(event, request=number)
        if step is None:
            yield Done(number, result)

    while True:
        while not exhausted and session.num_rows + len(session.waiting) < engine.batch_size:
            following = next(source, None)
            if following is None:
                exhausted = True
                break
            yield from go_on(*following, None)
        if not session.busy:
            return
        with engine.threads():
            events = session.step()
        for event in events:
            number, chain, step = running[event.request]
            if isinstance(event, (Finished, Failed)):
                del running[event.request]
            if isinstance(event, Finished):
                yield from go_on(number, chain, event.completion)
            else:
                yield placed(event, number, step.part)


def failure(error: Exception) -> GenerationError:
    """The error as one of generation."""
    if isinstance(error, GenerationError):
        return error
    wrapped = GenerationError(*(parts_of(error) or ("reply", told(error), SEE_TRACEBACK)))
    wrapped.__cause__ = error
    return wrapped
