"""Tasks: what one result needs of the engine (its candidates), and how it is made of them; and
running many through a session.

Every call of `Model` only makes tasks. They share one engine, so pictures, descriptions and
repairs, each with its own sampler, are drawn side by side; a task's requests are submitted when
there is room, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from cm3core.generation.engine import (
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
class Task(Generic[T]):
    """One result.

    Args:
        requests: its candidates, at least one.
        finish: makes the result of their completions, in the same order.
    """

    requests: Sequence[Request]
    finish: Callable[[Sequence[Completion]], T]


@dataclass(frozen=True, eq=False)
class Done(Event, Generic[T]):
    """A task's result; `request` is the number of its first candidate."""

    result: T


class _Running(Generic[T]):
    """A task whose candidates are in the session."""

    def __init__(self, task: Task[T], first: int, session: Session) -> None:
        self.task, self.first = task, first
        self.completions: list[Completion | None] = [None] * len(task.requests)
        self.numbers = {
            session.submit(request): index for index, request in enumerate(task.requests)
        }

    @property
    def ready(self) -> bool:
        return all(completion is not None for completion in self.completions)


def run(
    engine: Engine,
    tasks: Iterable[Task[T]],
    *,
    details: bool = False,
    progress: Progress | None = None,
    total: int = 0,
) -> Iterator[Event]:
    """Events of all candidates, numbered 0, 1, ... over all tasks, and a `Done` for each task, in
    the order of the tasks.

    Args:
        engine: completes the requests.
        tasks: taken as there is room for their candidates.
        details: also tell tokens, pieces of text and pictures in the making.
        progress: called with (tokens drawn, `total`).

    Raises:
        GenerationError: a request failed; what was finished before has been told.
    """
    session = engine.open(details=details)
    source, running = iter(tasks), deque[_Running[T]]()
    first, exhausted = 0, False
    while True:
        while not exhausted and session.num_rows + len(session.waiting) < engine.batch_size:
            task = next(source, None)
            if task is None:
                exhausted = True
                break
            running.append(_Running(task, first, session))
            first += len(task.requests)
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
            progress(session.num_drawn, total)
        while running and running[0].ready:
            done = running.popleft()
            yield Done(
                done.first, done.task.finish([one for one in done.completions if one is not None])
            )


def results(
    engine: Engine, tasks: Iterable[Task[T]], *, progress: Progress | None = None, total: int = 0
) -> Iterator[T]:
    """The tasks' results, in their order, each as soon as it and those before it are there."""
    for event in run(engine, tasks, progress=progress, total=total):
        if isinstance(event, Done):
            yield event.result
