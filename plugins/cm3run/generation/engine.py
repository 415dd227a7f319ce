"""The generation engine: fills the holes of documents, different kinds in one batch.

    engine.complete(requests)       completions, in order
    engine.stream(requests)         an iterator of events: tokens, text pieces, partial pictures, finished, failed
    engine.open()                   a session

Batching is continuous: a request joins a session as soon as there is room and leaves when it is done. Prompts are
prefilled once: identical prompts (candidates) and common prefixes (retrieved documents that several guidance streams
see) share their keys and values. `cm3run.generation.batch` describes a step.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import torch

from cm3core.document import NO_CELL, IntArray
from cm3core.errors import CM3Error, GenerationError
from cm3run.faults import raise_interrupt, told
from cm3run.generation.batch import Batch, Capture, cuda_graph
from cm3run.generation.events import (
    MAX_SEED,
    Cancelled,
    Completion,
    Event,
    Failed,
    Finished,
    PictureGrown,
    Progress,
    Request,
    TextGrown,
    TokensDrawn,
    Trace,
    candidate_seed,
    turn_of,
    wrong_request,
)
from cm3run.generation.jacobi import Guesses
from cm3run.generation.prepare import EngineOptions, Preparer
from cm3run.generation.prompts import feed

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder, InferenceDecoder
    from cm3core.interfaces.sampler import Sampler
    from cm3core.sequence.grammar import Hole
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary
    from cm3run.generation.row import ActiveRequest


logger = logging.getLogger("cm3.engine")


class Session:
    """The requests queued and in flight; made by `Engine.open`, to be used by one thread.

    At most `preparer.max_rows` stream rows are in flight, with keys and values of at most `preparer.cache_bytes`; a
    request that needs more is refused. Requests can be submitted at any time and start in the order submitted. Several
    sessions of one preparer may run at the same time.

    An error in a component fails only the requests it was called for. When the failing request is unknown (the decoder
    fails on a whole batch), the requests of that batch are drawn again in halves, with the same seeds and therefore
    the same tokens, until a single request fails.

    Args:
        preparer: turns requests into rows; holds the decoder.
        capture: how steps are captured, see `Batch`.
        details: whether `step` also reports tokens, pieces of text and partial pictures.
        record: keep the log-probabilities of every token, for `Completion.trace`. Disables the capture of steps.
        share: this session's share of the rows and the memory when several sessions run side by side; a single
            request may exceed it.
    """

    #: Number of sessions that step at the same time, this one included; they share the CPU threads.
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
        self._share, self._capture = share, capture
        self.preparer, self.details, self.record = preparer, details, record
        self._batch = self._empty_batch()
        self._queue: deque[ActiveRequest] = deque()
        self._pending: list[Event] = []
        #: Requests to be drawn again separately, and those of the current step.
        self._apart: deque[list[ActiveRequest]] = deque()
        self._stepping: list[ActiveRequest] = []
        self._next = 0
        #: Tokens drawn so far, over all requests.
        self.num_drawn = 0

    def _empty_batch(self) -> Batch:
        preparer = self.preparer
        rows_at_once = preparer.inference.rows_at_once
        guesses = None
        if preparer.window != 1 and (preparer.window != "auto" or rows_at_once):
            guesses = Guesses(preparer.window, preparer.serializer.grid[1], rows_at_once)
        return Batch(preparer.inference, self._capture, preparer.kept, guesses)

    @property
    def busy(self) -> bool:
        """Whether any work or event is left."""
        return bool(self._queue or self._batch.rows or self._pending or self._apart)

    @property
    def num_rows(self) -> int:
        """Stream rows in flight."""
        return self._batch.num_rows

    @property
    def waiting(self) -> tuple[ActiveRequest, ...]:
        """Requests that have not joined yet, in order."""
        return (*(row for rows in self._apart for row in rows), *self._queue)

    def submit(self, request: Request) -> int:
        """Queue a request.

        Returns:
            its number in events: 0, 1, ...

        Raises:
            GenerationError, DocumentError: the request can't be completed: it has no hole, an invalid seed or a value
                of a wrong type, it does not fit, or its sampler's plan fails. Nothing is queued then.
        """
        try:
            prepared = self.preparer.prepare(self._next, request)
        except CM3Error:
            raise
        except BaseException as error:  # an invalid request must not affect its neighbours
            raise_interrupt(error)
            raise GenerationError(
                f"request {self._next}",
                f"can't be prepared ({told(error)})",
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
        for waiting in (self._queue, *self._apart):
            for row in waiting:
                if row.number == number:
                    waiting.remove(row)
                    self._apart = deque(rows for rows in self._apart if rows)
                    self._pending.append(Cancelled(number))
                    return True
        for row in self._batch.rows:
            if row.number == number:
                self._pending.append(Cancelled(number))
                self._drop([row])
                return True
        return False

    def events(self) -> Iterator[Event]:
        """Yield all events until no work is left.

        Between two events, requests may be submitted and cancelled.
        """
        while self.busy:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit waiting requests, draw some tokens for every request, and return the events.

        Draws at most one row of a picture per request.
        """
        events, self._pending = self._pending, []
        try:
            with self.preparer.threads():
                self._step(events)
        except BaseException as error:
            raise_interrupt(error)
            self._set_apart(self._stepping, error)
        return events + self._take_pending()

    def _step(self, events: list[Event]) -> None:
        """Run one step and append its events to `events`."""
        self._stepping = list(self._batch.rows)
        self._admit()
        rows = self._stepping = list(self._batch.rows)
        if not rows:
            return
        before = [(row.grammar.hole, len(row.grammar.contents)) for row in rows]
        with self.preparer.threads(self.num_rows, self.num_sharing):
            drawn = self._batch.step(self.preparer.serializer.grid[1])
        self.num_drawn += sum(map(len, drawn))
        failed = []
        for row, (hole, number), tokens in zip(rows, before, drawn, strict=True):
            closed = len(row.grammar.contents) > number
            try:
                events += self._events_of(row, hole, tokens, closed=closed)
            except BaseException as error:  # for example from a text tokenizer
                raise_interrupt(error)
                events.append(Failed(row.number, wrong_request(row.number, error)))
                failed.append(row)
        if failed:
            self._drop(failed)

    def _events_of(
        self, row: ActiveRequest, hole: Hole, tokens: IntArray, *, closed: bool
    ) -> list[Event]:
        """The events of one request after a step."""
        if row.error is not None:
            return [Failed(row.number, row.error)]
        events = (
            row.events(self.preparer.serializer, hole, tokens, closed=closed)
            if self.details
            else []
        )
        return [*events, self._finished(row)] if row.grammar.done else events

    def _finished(self, row: ActiveRequest) -> Event:
        document = self.preparer.serializer.fill(row.document, row.grammar.contents)
        if row.trace is not None:
            row.trace.document, row.trace.contents = row.document, tuple(row.grammar.contents)
        facts = row.log_probability, row.num_drawn, row.trace, tuple(row.grammar.ends)
        return Finished(row.number, Completion(document, *facts))

    # ---- failures

    def _drop(self, rows: list[ActiveRequest]) -> None:
        """Free the rows of those requests that have any."""
        others = [other for other in self._batch.rows if other not in rows]
        try:
            with torch.inference_mode():
                self._batch.drop(rows)
        except BaseException as error:
            raise_interrupt(error)
            self._set_apart(others, error)

    def _set_apart(
        self, rows: list[ActiveRequest], error: BaseException, *, in_flight: bool = True
    ) -> None:
        """Handle a failure that may concern any of `rows`: a single request fails, several are drawn again in halves.
        Requests that have failed on their own meanwhile stay failed.

        Args:
            rows: all requests in flight and those that were joining.
            error: the exception raised.
            in_flight: False: `rows` were joining; the requests in flight continue.

        Raises:
            BaseException: the error, if the decoder no longer works.
        """
        if not self._decoder_works():
            raise error
        if in_flight:
            self._batch = self._empty_batch()
        if len(rows) == 1 and rows[0].error is None:
            rows[0].error = wrong_request(rows[0].number, error)
        again = []
        for row in rows:
            if row.error is None:
                self._begin_again(row)
            if row.error is None:
                again.append(row)
            else:
                self._pending.append(Failed(row.number, row.error))
        if again:
            logger.error(
                "a step of %d requests failed; they are drawn again in halves",
                len(rows),
                exc_info=error,
            )
        half = (len(again) + 1) // 2
        self._apart.extend(part for part in (again[:half], again[half:]) if part)

    def _begin_again(self, row: ActiveRequest) -> None:
        try:
            fresh = self.preparer.prepare(row.number, row.request)
        except BaseException as error:
            raise_interrupt(error)
            row.error = wrong_request(row.number, error)
            return
        fresh.trace = Trace() if self.record else None
        row.begin_again(fresh)

    def _decoder_works(self) -> bool:
        """Whether the decoder can still read a token; it can't after its device was lost, for example."""
        decoder = self.preparer.inference
        try:
            with torch.inference_mode():
                token, cell = np.zeros(1, np.int32), np.full(1, NO_CELL, np.int32)
                hidden_1E = feed(decoder, decoder.allocate_cache(1, 1), [token], [cell])
                decoder.logits(hidden_1E, range(1)).cpu()
        except BaseException as error:
            raise_interrupt(error)
            return False
        return True

    def _take_pending(self) -> list[Event]:
        events, self._pending = self._pending, []
        return events

    def _admit(self) -> None:
        """Admit as many requests from the head of the queue as there is room for."""
        joining: list[ActiveRequest] = []
        taken = 0, 0
        if self._apart:
            if self._batch.rows:  # let these finish first
                return
            joining = self._apart.popleft()
            longest = max(row.longest for row in joining)
            self._join(joining, sum(len(row.prompts) for row in joining), longest)
            return
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
            self._join(joining, *taken)

    def _join(self, rows: list[ActiveRequest], num_rows: int, longest: int) -> None:
        """Prefill the prompts of requests and add the requests to the batch."""
        try:
            self.preparer.make_room(num_rows, longest, self._share)
            read = self._batch.read(rows)
        except BaseException as error:  # the requests in flight are unaffected
            raise_interrupt(error)
            self._set_apart(rows, error, in_flight=False)
            return
        self._stepping += rows
        self._batch.join(rows, read)


__all__ = [
    "MAX_SEED",
    "Cancelled",
    "Completion",
    "Engine",
    "EngineOptions",
    "Event",
    "Failed",
    "Finished",
    "PictureGrown",
    "Progress",
    "Request",
    "Session",
    "TextGrown",
    "TokensDrawn",
    "candidate_seed",
    "candidates",
    "turn_of",
]


def candidates(request: Request, number: int, sampler: Sampler | None = None) -> list[Request]:
    """The request's first `number` candidates, each with its own seed and sampler.

    Args:
        request: the request.
        number: at least 1.
        sampler: used if the request names none (the engine's default).
    """
    sampler = sampler if request.sampler is None else request.sampler
    return [
        replace(
            request,
            seed=candidate_seed(request.seed, index),
            sampler=None if sampler is None else sampler.for_candidate(index),
        )
        for index in range(number)
    ]


class Engine:
    """Completes documents with one decoder.

    Args:
        decoder: on any device.
        serializer: documents -> prompts, with the text tokenizer that turns drawn ids into text.
        sampler: default for requests that name none; decides the guidance streams and how logits are mixed and
            filtered.
        vocabulary: the decoder's.
        options: limits of rows and memory, precision, and how texts are read.
        inference: the decoder, already prepared for generation; the precision in `options` is then ignored.
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        sampler: Sampler,
        vocabulary: Vocabulary,
        options: EngineOptions | None = None,
        *,
        inference: InferenceDecoder | None = None,
    ) -> None:
        options = EngineOptions() if options is None else options
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.inference = (
            decoder.for_inference(options.precision) if inference is None else inference
        )
        #: Turns requests into rows of a batch.
        self.preparer = Preparer(decoder, self.inference, serializer, sampler, vocabulary, options)
        #: How steps are captured: as CUDA graphs on CUDA, never elsewhere.
        device = self.inference.device
        self.capture: Capture | None = (
            partial(cuda_graph, device=device) if device.type == "cuda" else None
        )

    # ---- queries

    @property
    def batch_size(self) -> int:
        """Number of requests that are sure to fit in flight at once."""
        return self.preparer.batch_size

    @property
    def sampler(self) -> Sampler:
        """The default sampler, for requests that name none."""
        return self.preparer.sampler

    @property
    def max_rows(self) -> int:
        """Maximum number of stream rows in flight."""
        return self.preparer.max_rows

    def fits(self, request: Request) -> bool:
        """Whether the request's prompts and everything to be generated fit the context."""
        return self.preparer.fits(request)

    def threads(self) -> AbstractContextManager[None]:
        """A context in which torch uses the engine's number of CPU threads."""
        return self.preparer.threads()

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["raise"] = ...,
        record: bool = ...,
    ) -> list[Completion]: ...

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["return"],
        record: bool = ...,
    ) -> list[Completion | GenerationError]: ...

    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        on_error: Literal["raise", "return"] = "raise",
        record: bool = False,
    ) -> list[Completion] | list[Completion | GenerationError]:
        """Fill the holes of all requests; results are in the order of the requests.

        Args:
            requests: of any kinds, mixed.
            progress: called after each step.
            on_error: "raise": raise the first request's error; "return": put a failed request's error in the place of
                its completion, without affecting the others.
            record: keep the log-probabilities of every token in `Completion.trace`.

        Raises:
            GenerationError: a request has no hole, has an invalid seed, or doesn't fit the context
                (raised before anything is generated); or it fails later.
            DocumentError: a document can't be serialised.
        """
        session = self.open(details=False, record=record)
        results: list[Completion | GenerationError | None] = [None] * len(requests)
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                number = session.submit(request)
            except CM3Error as error:
                if on_error == "raise":
                    raise
                results[place] = _refusal(place, error)
                continue
            places[number] = place
        rows = session.waiting
        total = sum(row.most_draws for row in rows)
        with self.threads():
            while session.busy:
                for event in session.step():
                    if isinstance(event, Failed):
                        if on_error == "raise":
                            raise event.error
                        results[places[event.request]] = event.error
                    elif isinstance(event, Finished):
                        results[places[event.request]] = event.completion
                if progress is not None:
                    progress(sum(row.num_drawn for row in rows), total)
        return results  # type: ignore[return-value]  # every place is filled: a session ends with each request finished or failed

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield the events of the requests as they happen, numbered by position in `requests`.

        Failed requests are reported as events, not raised; invalid requests are reported first. Leaving the
        iterator cancels the remaining work.
        """
        session = self.open()
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                places[session.submit(request)] = place
            except CM3Error as error:
                yield Failed(place, _refusal(place, error))
        for event in session.events():
            yield replace(event, request=places[event.request])

    def open(self, *, details: bool = True, record: bool = False, share: float = 1.0) -> Session:
        """Open a session, which requests can join and leave at any time; the arguments are those of `Session`."""
        return Session(self.preparer, self.capture, details=details, record=record, share=share)


def _refusal(place: int, error: CM3Error) -> GenerationError:
    """The error for a request that can't be queued."""
    return error if isinstance(error, GenerationError) else wrong_request(place, error)
