"""Jobs: the requests of one result and how the result is made from them; running many jobs in one session.

Every call of `Model` makes jobs. They share one engine, so pictures, captions and inpainted regions, each with its own
sampler, are generated side by side. A job's requests are submitted when there is room, so memory does not grow with
the number of jobs.

A reply takes several requests in sequence, since each depends on the previous result. It is a chain: a generator that
yields a `Step` and receives its completion. Events that it yields are passed on; its return value is the result. The
same chain runs here and in the loop of `AsyncModel`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar

from cm3core.errors import GenerationError
from cm3run.faults import SEE_TRACEBACK, contained, parts_of, told
from cm3run.generation.engine import (
    Completion,
    Engine,
    Event,
    Failed,
    Finished,
    PictureGrown,
    Progress,
    Request,
    Session,
    TextGrown,
    TokensDrawn,
)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Job(Generic[T]):
    """One result.

    Args:
        requests: its candidates; none: nothing is drawn for it.
        finish: makes the result from their completions, in the same order.
        reserved: the numbers that its candidates take in events; 0: as many as there are.
    """

    requests: Sequence[Request]
    finish: Callable[[Sequence[Completion]], T]
    reserved: int = 0

    @property
    def size(self) -> int:
        """The numbers that its candidates take in events."""
        return max(self.reserved, len(self.requests))


@dataclass(frozen=True, eq=False)
class Done(Event, Generic[T]):
    """A job's result; `request` is the number of its first candidate."""

    result: T


class _Running(Generic[T]):
    """A job whose candidates are in the session."""

    def __init__(self, job: Job[T], first: int, session: Session) -> None:
        self.job, self.first = job, first
        self.completions: list[Completion | None] = [None] * len(job.requests)
        self.numbers = {
            session.submit(request): index for index, request in enumerate(job.requests)
        }

    @property
    def ready(self) -> bool:
        return all(completion is not None for completion in self.completions)


def run(
    engine: Engine,
    jobs: Iterable[Job[T]],
    *,
    details: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[Event]:
    """Yield the events of all candidates, and a `Done` for each job, in the order of the jobs.

    Candidates are numbered 0, 1, ... over all jobs.

    Args:
        engine: completes the requests.
        jobs: taken when there is room for their candidates.
        details: also report tokens, pieces of text and partial pictures.
        progress: called with (tokens generated, `total`).

    Raises:
        GenerationError: a request failed; earlier results have been reported.
    """
    session = engine.open(details=details)
    source, running = iter(jobs), deque[_Running[T]]()
    first, exhausted = 0, False
    while True:
        while (
            not exhausted
            and not (running and running[0].ready)
            and session.num_rows + len(session.waiting) < engine.batch_size
        ):
            with contained("request"):
                job = next(source, None)
            if job is None:
                exhausted = True
                break
            running.append(_Running(job, first, session))
            first += job.size
        if not running:
            return
        for event in _stepped(engine, session):
            owner = next(one for one in running if event.request in one.numbers)
            index = owner.numbers[event.request]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                owner.completions[index] = event.completion
            yield replace(event, request=owner.first + index)
        if progress is not None:
            progress(min(session.num_drawn, total), total)  # repeated draws count twice
        while running and running[0].ready:
            done = running.popleft()
            with contained("result"):
                result = done.job.finish([one for one in done.completions if one is not None])
            yield Done(done.first, result)


def _stepped(engine: Engine, session: Session) -> Sequence[Event]:
    """The events of the session's next step; none if it has nothing to do."""
    if not session.busy:
        return ()
    with engine.threads():
        return session.step()


def results(
    engine: Engine, jobs: Iterable[Job[T]], *, progress: Progress | None = None, total: int = 0
) -> Iterator[T]:
    """The jobs' results in order, each as soon as it and those before it are ready."""
    for event in run(engine, jobs, progress=progress, total=total):
        if isinstance(event, Done):
            yield event.result


@dataclass(frozen=True, eq=False)
class Step:
    """The next request of a chain; `part`: number of the result's part, used in its events."""

    request: Request
    part: int


Chain: TypeAlias = Generator[Step | Event, Completion | None, T]


def advance(
    chain: Chain[T], completion: Completion | None
) -> tuple[list[Event], Step | None, T | None]:
    """Send a chain its completion (None: start it). Returns its events, and its next step or its result."""
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
    """A request's event, renumbered as an event of part `part` of chain `number`."""
    if isinstance(event, (TextGrown, PictureGrown, TokensDrawn)):
        return replace(event, request=number, segment=part)
    return replace(event, request=number)


def run_chains(
    engine: Engine, chains: Iterable[Chain[T]], *, details: bool = False
) -> Iterator[Event]:
    """Yield the events of all chains, and a `Done` or a `Failed` for each, as they happen. Chains are numbered
    0, 1, ..., and started when there is room for them.

    Args:
        engine: completes the requests.
        chains: not yet started.
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
        except Exception as error:  # only this chain fails; the others go on
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
    """The error as a `GenerationError`."""
    if isinstance(error, GenerationError):
        return error
    wrapped = GenerationError(*(parts_of(error) or ("reply", told(error), SEE_TRACEBACK)))
    wrapped.__cause__ = error
    return wrapped
