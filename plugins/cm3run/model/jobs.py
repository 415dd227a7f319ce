"""Jobs: what one result asks of the engine, how it is made, and running many in one session.

Every call of `Model` only makes jobs. They share one engine, so pictures, captions and inpainted
regions, each with its own sampler, are generated side by side. A job's requests are submitted when
there is room, so memory does not grow with the number of jobs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cm3core.faults import contained
from cm3run.generation.engine import (
    Completion,
    Engine,
    Event,
    Failed,
    Finished,
    Progress,
    Request,
    Session,
)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Job(Generic[T]):
    """One result.

    Args:
        requests: its candidates, at least one.
        finish: makes the result from their completions, in the same order.
    """

    requests: Sequence[Request]
    finish: Callable[[Sequence[Completion]], T]


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
    """Events of all candidates, and a `Done` for each job, in the order of the jobs.

    Candidates are numbered 0, 1, ... over all jobs.

    Args:
        engine: completes the requests.
        jobs: taken when there is room for their candidates.
        details: also report tokens, pieces of text and partial pictures.
        progress: called with (tokens generated, `total`).

    Raises:
        GenerationError: a request failed; what finished before it has been reported.
    """
    session = engine.open(details=details)
    source, running = iter(jobs), deque[_Running[T]]()
    first, exhausted = 0, False
    while True:
        while not exhausted and session.num_rows + len(session.waiting) < engine.batch_size:
            with contained("request"):
                job = next(source, None)
            if job is None:
                exhausted = True
                break
            running.append(_Running(job, first, session))
            first += len(job.requests)
        if not session.busy:
            return
        with engine.threads():
            events = session.step()
        for event in events:
            owner = next(one for one in running if event.request in one.numbers)
            index = owner.numbers[event.request]
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                owner.completions[index] = event.completion
            yield replace(event, request=owner.first + index)
        if progress is not None:
            progress(min(session.num_drawn, total), total)  # what is drawn again counts twice
        while running and running[0].ready:
            done = running.popleft()
            with contained("result"):
                result = done.job.finish([one for one in done.completions if one is not None])
            yield Done(done.first, result)


def results(
    engine: Engine, jobs: Iterable[Job[T]], *, progress: Progress | None = None, total: int = 0
) -> Iterator[T]:
    """The jobs' results in order, each as soon as it and those before it are ready."""
    for event in run(engine, jobs, progress=progress, total=total):
        if isinstance(event, Done):
            yield event.result
