"""Continuous batching: requests join as soon as there is room, and leave when they are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from cm3core.errors import CM3Error, GenerationError
from cm3core.generation.batch import Batch
from cm3core.generation.events import (
    Cancelled,
    Completion,
    Event,
    Failed,
    Finished,
    Request,
    Trace,
    wrong_request,
)

if TYPE_CHECKING:
    from cm3core.generation.cuda_graph import Capture
    from cm3core.generation.prepare import Preparer
    from cm3core.generation.row import ActiveRequest


class Session:
    """Requests in flight and in the queue; made by `Engine.open`, for use by one thread.

    At most `preparer.max_rows` stream rows are in flight (a request with more streams is refused),
    and their keys and values fit `preparer.cache_bytes`. Requests can be submitted at any time; the
    queue is first come, first served. Several sessions of one preparer may run at the same time.

    Args:
        preparer: turns requests into rows; holds the decoder that completes them.
        capture: how steps are captured, see `Batch`.
        details: whether `step` also reports tokens, pieces of text and partial pictures.
        record: keep the log-probabilities of every token, for `Completion.trace`. Steps are not
            captured then.
        share: of the rows and of the memory that this session takes, of several that run side by side; a
            single request may take more.
    """

    #: Sessions that step at the same time, this one included: they share the threads of the CPU.
    num_sharing = 1

    def __init__(
        self,
        preparer: Preparer,
        capture: Capture | None = None,
        *,
        details: bool = True,
        record: bool = False,
        share: float = 1.0,
    ) -> None:
        self._share = share
        self.preparer, self.details, self.record = preparer, details, record
        self._batch = Batch(preparer.inference, capture, preparer.kept)
        self._queue: deque[ActiveRequest] = deque()
        self._pending: list[Event] = []
        self._next = 0
        #: Tokens drawn so far, over all requests.
        self.num_drawn = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do or to report."""
        return bool(self._queue or self._batch.rows or self._pending)

    @property
    def num_rows(self) -> int:
        """Stream rows in flight."""
        return self._batch.num_rows

    @property
    def waiting(self) -> tuple[ActiveRequest, ...]:
        """Requests that have not joined yet, in order."""
        return tuple(self._queue)

    def submit(self, request: Request) -> int:
        """Queue a request.

        Returns:
            its number in events: 0, 1, ...

        Raises:
            GenerationError, DocumentError: it can't be completed: no hole, a bad seed, no room for
                it, values of other types than a request has, a sampler whose plan fails. Nothing is
                queued then.
        """
        try:
            prepared = self.preparer.prepare(self._next, request)
        except CM3Error:
            raise
        except Exception as error:  # whatever a request holds is its own fault, and no neighbour's
            raise GenerationError(
                f"request {self._next}",
                f"can't be prepared ({type(error).__name__}: {error})",
                "see `Request` for what it holds, and the sampler's plan",
            ) from error
        if self.record:
            prepared.trace = Trace()
        self._queue.append(prepared)
        self._next += 1
        return self._next - 1

    def cancel(self, number: int) -> bool:
        """Remove a request, queued or in flight; its rows are free at once.

        Returns False if the request is no longer there.
        """
        for row in self._queue:
            if row.number == number:
                self._queue.remove(row)
                self._pending.append(Cancelled(number))
                return True
        for row in self._batch.rows:
            if row.number == number:
                with torch.inference_mode():
                    self._batch.drop([row])
                self._pending.append(Cancelled(number))
                return True
        return False

    def events(self) -> Iterator[Event]:
        """All events until nothing is left to do.

        Between two events, requests may be submitted and cancelled.
        """
        while self.busy:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Let waiting requests join, draw some tokens for every request, and return the events.

        At most one row of a picture is drawn per request.
        """
        events, self._pending = self._pending, []
        with self.preparer.threads():
            self._admit()
            if not self._batch.rows:
                return events + self._take_pending()
            rows = self._batch.rows
            before = [(row.grammar.hole, len(row.grammar.contents)) for row in rows]
            with self.preparer.threads(self.num_rows, self.num_sharing):
                drawn = self._batch.step(self.preparer.serializer.grid[1])
        self.num_drawn += sum(map(len, drawn))
        for row, (hole, number), tokens in zip(rows, before, drawn, strict=True):
            if row.error is not None:
                events.append(Failed(row.number, row.error))
                continue
            if self.details:
                events += row.events(
                    self.preparer.serializer,
                    hole,
                    tokens,
                    closed=len(row.grammar.contents) > number,
                )
            if row.grammar.done:
                events.append(self._finished(row))
        return events + self._take_pending()

    def _finished(self, row: ActiveRequest) -> Event:
        try:
            document = self.preparer.serializer.fill(row.document, row.grammar.contents)
        except CM3Error as error:  # a text tokenizer that can't decode
            return Failed(row.number, wrong_request(row.number, error))
        if row.trace is not None:
            row.trace.document, row.trace.contents = row.document, tuple(row.grammar.contents)
        facts = row.log_probability, row.num_drawn, row.trace, tuple(row.grammar.ends)
        completion = Completion(document, *facts)
        return Finished(row.number, completion)

    def _take_pending(self) -> list[Event]:
        events, self._pending = self._pending, []
        return events

    def _admit(self) -> None:
        """Join as many requests from the head of the queue as there is room for."""
        joining: list[ActiveRequest] = []
        taken = 0, 0
        rows, longest = (
            self._batch.num_rows,
            max((row.longest for row in self._batch.rows), default=0),
        )
        while self._queue:
            row = self._queue[0]
            rows, longest = rows + len(row.prompts), max(longest, row.longest)
            in_flight = bool(joining or self._batch.rows)
            if in_flight and (
                rows > self._share * self.preparer.max_rows
                or self.preparer.exceeds_memory(rows, longest, self._share)
            ):
                break
            joining.append(self._queue.popleft())
            taken = rows, longest
        if joining:
            self.preparer.make_room(*taken, self._share)
            self._batch.join(joining)
