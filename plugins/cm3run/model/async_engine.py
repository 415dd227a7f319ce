"""An engine for coroutines, whose requests share its batches; helpers that run coroutines together and functions in
threads.

Threads run the engine's sessions. A decoder with small steps gets several sessions, each in its own thread
(`Preparer.num_sessions`): two batches on a core each are faster than one batch whose products are split between the
cores. Requests for the same document go to the same session, so that their prompt is read once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from cm3core.arguments import checked
from cm3core.errors import CM3Error, GenerationError
from cm3run.faults import contained, told
from cm3run.generation.engine import (
    Cancelled,
    Completion,
    Engine,
    Event,
    Failed,
    Finished,
    Request,
    Session,
)
from cm3run.generation.prepare import using_threads

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Run a blocking function in a thread and return its result. Its exceptions affect only its caller.

    In a coroutine, `SystemExit` would end the event loop, `StopIteration` would never be delivered, a `CancelledError`
    would look like a cancelled caller, and a `TimeoutError` like the caller's own. These become a `GenerationError`.
    """

    def run() -> T:
        with contained("component", futures.CancelledError, TimeoutError):
            return function(*arguments, **options)

    return await asyncio.to_thread(run)


async def together(coroutines: Sequence[Any]) -> list[Any]:
    """Run coroutines concurrently and return their results.

    When one fails or the caller is cancelled, all are cancelled.
    """
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancelled(tasks)


async def cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks that are still running, and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


logger = logging.getLogger("cm3.engine")

#: Receives a request's events, or the error that refused it. Called from a thread of the engine.
Sink: TypeAlias = Callable[[Event | CM3Error], None]


@dataclass(frozen=True)
class _Submit:
    ticket: int
    request: Request
    sink: Sink
    details: bool


@dataclass(frozen=True)
class _Cancel:
    ticket: int


class _Worker:
    """A session and its thread.

    Args:
        owner: the engine whose sessions share the machine's threads.
        session: used by this worker only.
    """

    def __init__(self, owner: AsyncEngine, session: Session) -> None:
        self.owner, self.session = owner, session
        self.orders: queue.SimpleQueue[_Submit | _Cancel | None] = queue.SimpleQueue()
        #: Requests assigned to it that have not ended for their caller; guarded by the owner's lock.
        self.given = 0
        #: Requests in its session: in flight, or waiting to join.
        self.held = 0
        #: Start time of its current step or preparation; None: idle.
        self.since: float | None = None
        self._numbers: dict[int, int] = {}  # ticket -> number in the session
        self._orders: dict[int, _Submit] = {}  # by number
        self.thread = threading.Thread(target=self._work, name="cm3-engine", daemon=True)

    def _work(self) -> None:
        """The thread's loop: orders, a step, its events; sleeps while idle."""
        session, failure = self.session, None
        try:
            while self._obey():
                session.num_sharing = self.owner.num_busy
                self.since = time.monotonic()
                for event in session.step():
                    self._report(event)
                self.held = len(self._numbers)
        except (
            BaseException
        ) as error:  # the decoder has stopped working: pass the error to every caller
            failure = error
            logger.critical("the engine has stopped", exc_info=error)
        self.owner.end(failure)
        self.held, self.since = 0, None
        for order in self._orders.values():
            order.sink(self.owner.closed_error())
        while not self.orders.empty():
            left = self.orders.get()
            if isinstance(left, _Submit):
                left.sink(self.owner.closed_error())

    def _report(self, event: Event) -> None:
        order = self._orders.get(event.request)
        if order is None:
            return
        if isinstance(event, (Finished, Failed, Cancelled)):
            del self._orders[event.request], self._numbers[order.ticket]
        elif not order.details:
            return
        order.sink(event)

    def _obey(self) -> bool:
        """Carry out pending orders; wait when there is no work. False: close."""
        while not (self.session.busy and self.orders.empty()):
            self.since = None
            order = self.orders.get()
            if order is None:
                return False
            self.since = time.monotonic()
            if isinstance(order, _Cancel):
                if order.ticket in self._numbers:
                    self.session.cancel(self._numbers[order.ticket])
                continue
            try:
                number = self.session.submit(order.request)
            except CM3Error as error:
                order.sink(error)
                continue
            self._numbers[order.ticket], self._orders[number] = number, order
        return True


class AsyncEngine:
    """An engine that runs in its own threads, for coroutines of any event loop.

    Use it with `async with`, or call `close` at the end.

    Args:
        engine: completes the requests; nothing else may use it at the same time.
        num_sessions: sessions side by side, each in its own thread. None: the number the engine recommends.
    """

    def __init__(self, engine: Engine, num_sessions: int | None = None) -> None:
        self.engine = engine
        self._tickets, self._lock, self._closed = itertools.count(), threading.Lock(), False
        self._failure: BaseException | None = None
        self._worker_of: dict[int, _Worker] = {}  # by ticket
        #: The worker of each document, by the document's identity, and the number of its requests there.
        self._document_of: dict[int, tuple[_Worker, int]] = {}
        number = engine.preparer.num_sessions if num_sessions is None else num_sessions
        self._most_together = max(1, engine.batch_size // number)
        sessions = [
            engine.open() if number == 1 else engine.open(share=1 / number) for _ in range(number)
        ]
        self._workers = [_Worker(self, session) for session in sessions]
        for worker in self._workers:
            worker.thread.start()

    @property
    def num_requests(self) -> int:
        """Number of requests in the engine's threads: in flight, or waiting to join."""
        return sum(worker.held for worker in self._workers)

    @property
    def num_busy(self) -> int:
        """Number of sessions with work, at least 1."""
        return max(1, sum(worker.given > 0 for worker in self._workers))

    async def complete(self, request: Request) -> Completion:
        """Complete a request.

        Raises:
            GenerationError, DocumentError: the request can't be completed, it failed, or the engine is closed.
        """
        async for event in self.stream(request, details=False):
            if isinstance(event, Finished):
                return event.completion
            if isinstance(event, Failed):
                raise event.error
        raise AssertionError("a stream ends with one of these")

    async def stream(self, request: Request, *, details: bool = True) -> AsyncIterator[Event]:
        """Yield the request's events, all numbered 0; the last one is `Finished` or `Failed`.

        Leaving the iterator cancels the request.

        Args:
            request: any request that the engine can complete.
            details: report tokens, pieces of text and partial pictures too, not only the last event.

        Raises:
            GenerationError, DocumentError: the request can't be completed, or the engine is closed.
        """
        loop, reports, ticket, ended = (
            asyncio.get_running_loop(),
            asyncio.Queue[Event | CM3Error](),
            next(self._tickets),
            False,
        )

        def sink(thing: Event | CM3Error) -> None:
            try:
                loop.call_soon_threadsafe(reports.put_nowait, thing)
            except RuntimeError:  # the caller's event loop is closed, so no one reads the events
                self._leave(ticket, request, cancel=True)

        self._submit(_Submit(ticket, request, sink, details))
        try:
            while not ended:
                thing = await reports.get()
                if isinstance(thing, CM3Error):
                    ended = True
                    raise thing
                ended = isinstance(thing, (Finished, Failed, Cancelled))
                yield replace(thing, request=0)
        finally:
            self._leave(ticket, request, cancel=not ended)

    @property
    def has_ended(self) -> bool:
        """Whether it has stopped or was closed; it then completes no more requests."""
        return self._closed or not all(worker.thread.is_alive() for worker in self._workers)

    @checked(GenerationError)
    def trouble(self, seconds: float) -> str | None:
        """Describe what is wrong with the engine; None: nothing.

        Args:
            seconds: a thread whose step takes longer counts as stuck.
        """
        if self._failure is not None:
            return f"it stopped with {type(self._failure).__name__}"
        if self.has_ended:
            return "it has ended"
        for worker in self._workers:
            since = worker.since
            if since is not None and (took := time.monotonic() - since) > seconds:
                return f"a step has taken {took:.0f} s so far; waiting requests: {worker.given}"
        return None

    def stacks(self) -> str:
        """Stack traces of its threads, for logging when one is stuck."""
        frames = sys._current_frames()
        parts = []
        for worker in self._workers:
            frame = frames.get(worker.thread.ident or 0)
            if frame is not None:
                parts += ["".join(traceback.format_stack(frame))]
        return "\n".join(parts)

    def close(self) -> None:
        """Stop the threads. Requests in flight fail."""
        for worker in self._workers:
            worker.orders.put(None)
        for worker in self._workers:
            worker.thread.join()

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.close)

    @contextmanager
    def spare_threads(self) -> Iterator[None]:
        """A context for other work: it uses one CPU thread if the sessions use the others."""
        with using_threads(1 if len(self._workers) > 1 and self.num_requests else None):
            yield

    # ---- for the workers

    def end(self, failure: BaseException | None) -> None:
        """A worker has ended: stop the other workers and refuse further requests."""
        with self._lock:
            first, self._closed = not self._closed, True
            if self._failure is None:
                self._failure = failure
        if first:
            for worker in self._workers:
                worker.orders.put(None)

    def closed_error(self) -> GenerationError:
        """The error for callers of an engine that has ended."""
        cause = self._failure
        if cause is None:
            return GenerationError(
                "engine", "is closed", "keep it open until all results have arrived"
            )
        error = GenerationError(
            "engine",
            f"stopped with {told(cause)}",
            "see the traceback of its cause",
        )
        error.__cause__ = cause
        return error

    # ---- assigning requests to workers

    def _submit(self, order: _Submit) -> None:
        with self._lock:
            if not self._closed:
                document = id(order.request.document)  # alive as long as the request is
                worker, number = self._document_of.get(document, (None, 0))
                if worker is None or number >= self._most_together:
                    worker, number = min(self._workers, key=lambda one: one.given), 0
                self._document_of[document] = worker, number + 1
                self._worker_of[order.ticket] = worker
                worker.given += 1
                worker.orders.put(order)
                return
        order.sink(self.closed_error())

    def _leave(self, ticket: int, request: Request, *, cancel: bool) -> None:
        """A caller no longer needs its request; cancel it unless it has ended."""
        with self._lock:
            worker = self._worker_of.pop(ticket, None)
            if worker is None:
                return
            worker.given -= 1
            document = id(request.document)
            if document in self._document_of:
                together, number = self._document_of[document]
                if number > 1:
                    self._document_of[document] = together, number - 1
                else:
                    del self._document_of[document]
            if cancel and not self._closed:
                worker.orders.put(_Cancel(ticket))
