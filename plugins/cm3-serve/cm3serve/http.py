"""One request, from its body to its response: limits, errors in the API's format, disconnected clients; and the request
metrics of `/metrics` for Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import Headers

from cm3core.errors import CheckpointError, CM3Error, DeviceError, GenerationError
from cm3run.model.async_engine import cancelled
from cm3serve.errors import APIError, in_one_line, internal, no_documents, of_model
from cm3serve.fields import Field, form_values, json_object, read, shown
from cm3serve.intake import Gate, Intake, Structure, check_length_is_given
from cm3serve.pictures import Upload
from cm3serve.sending import DONE, PIECE, Event, Outbox, Unsent, UnsentFull
from cm3serve.settings import Limits

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from cm3serve.intake import Gate
    from cm3serve.scheduling import FairQueue, ModelPool


logger = logging.getLogger("cm3.serve")

Answer: TypeAlias = dict[str, Any] | AsyncGenerator[Event, None]
#: The work of a route, given a request's fields.
Handler: TypeAlias = Callable[[Intake], Awaitable[Answer]]
#: Key of a scope: the seed for a request without one, see `door`.
SEED = "cm3.seed"
#: The status logged for a client that disconnected before its response.
CLIENT_GONE = 499
#: Unread bytes of a client from which optional events are left out.
_BEHIND = 1 << 20


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A POST route, as an ASGI application.

    Args:
        path: its path, also its name in metrics.
        fields: the fields of its body.
        handler: does the work; it calls `Intake.forget_pictures` when it has read the pictures.
        limits: the limits of requests.
        metrics: counts requests.
        gate: the server's memory, shared by all requests.
        forms: whether it also accepts `multipart/form-data`.
        closes: whether its streams end with `[DONE]`.
        summary: one line for the documentation.
    """

    path: str
    fields: Sequence[Field]
    handler: Handler
    limits: Limits
    metrics: Metrics
    gate: Gate
    summary: str
    forms: bool = False
    closes: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors are sent and logged once."""
        start = time.perf_counter()
        client = (scope.get("client") or ("unknown",))[0]
        intake = Intake(self.gate, client)
        reply = Reply(send, self.gate.unsent, splits=SEED not in scope)
        try:
            headers = Headers(scope=scope)
            if SEED not in scope:  # a door already has the body
                check_length_is_given(headers)
            await self._read(headers, receive, intake)
            if SEED in scope:  # from a door, so that another server gives the same result
                intake.values.setdefault("seed", scope[SEED])
            gone = await self._watched(intake, reply, receive)
            status, note = (CLIENT_GONE, "the client disconnected") if gone else (reply.status, "")
        except Exception as error:  # any error becomes a response in the API's format
            answer = answer_to(error, self.path)
            self.metrics.refused(answer.code or "")
            await reply.fail(answer)
            status, note = answer.status, answer.message
            forgotten(error)
        finally:
            intake.close()
        seconds = time.perf_counter() - start
        self.metrics.answered(self.path, status, seconds)
        logger.info("%s POST %s %d %.2fs %s", client, self.path, status, seconds, note[:300])

    async def _read(self, headers: Headers, receive: Receive, intake: Intake) -> None:
        """Read the body's fields into `intake`."""
        sort = headers.get("content-type", "").partition(";")[0].strip().lower()
        accepted = ["application/json", *(["multipart/form-data"] if self.forms else [])]
        if sort not in accepted:
            raise APIError(
                415, f"the body must be {' or '.join(accepted)}", code="unsupported_media_type"
            )
        check_encoding(headers)
        if sort == "application/json":
            body = await intake.body(headers, receive, Structure(self.limits.json_values))
            intake.values = await intake.parsed(self._of_json, body)
        else:
            body = await intake.body(headers, receive)
            intake.values, intake.uploads = await intake.parsed(self._of_form, headers, body)

    def _of_json(self, body: bytearray) -> dict[str, Any]:
        return read(self.fields, json_object(body))

    def _of_form(
        self, headers: Headers, body: bytearray
    ) -> tuple[dict[str, Any], dict[str, list[Upload]]]:
        # starlette's parser consists of coroutines that never wait
        given, uploads = asyncio.run(form_values(headers, body, self.fields, self.limits))
        return read(self.fields, given), uploads

    async def _watched(self, intake: Intake, reply: Reply, receive: Receive) -> bool:
        """Do the work while the client is connected. Return whether it disconnected first, which stops the
        work and frees its rows."""
        work = asyncio.create_task(self._work(intake, reply))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = work.done()
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not ended and work.cancelled():
            return True
        work.result()
        return False

    async def _work(self, intake: Intake, reply: Reply) -> None:
        end = asyncio.get_running_loop().time() + self.limits.seconds
        try:
            async with asyncio.timeout_at(end):
                answer = await self.handler(intake)
                body = await intake.encoded(encoded, answer) if isinstance(answer, dict) else b""
            if isinstance(answer, dict):
                del answer
                intake.forget_results()
                await reply.whole(200, body)
            else:
                await reply.stream(answer, intake, closes=self.closes, end=end)
        except TimeoutError:
            raise APIError(
                504,
                f"the response took more than {self.limits.seconds:g} s",
                type="server_error",
                code="timeout",
            ) from None


def encoded(body: Mapping[str, Any]) -> bytes:
    """Sends a response."""
    return json.dumps(body).encode()


class Reply:
    """The response to one client. `status` is 0 until something is sent.

    Args:
        send: ASGI's function.
        unsent: keeps data that the client has not read. None: with its own limits.
        splits: whether an event may be sent in several messages; a door needs one message for each.
    """

    def __init__(self, send: Send, unsent: Unsent | None = None, *, splits: bool = True) -> None:
        self._send, self._unsent = send, unsent or Unsent(Limits())
        self._length = PIECE if splits else 0
        self.status, self._streams = 0, False

    async def json(self, body: Mapping[str, Any], status: int = 200) -> None:
        """Send a short response."""
        await self.whole(status, encoded(body))

    async def stream(
        self,
        events: AsyncGenerator[Event, None],
        intake: Intake,
        *,
        closes: bool,
        end: float,
    ) -> None:
        """Send events as they happen. Errors before the first event are not sent in the stream.

        A slow client does not delay the work, which is done when the last event exists, not when it is sent.

        Args:
            events: the work.
            intake: the request's intake; its results are forgotten when the work is done.
            closes: whether the stream ends with a closing line.
            end: the deadline of the work, on the event loop's clock.
        """
        outbox = Outbox(self._unsent, self._length)
        work = asyncio.create_task(self._collect(events, outbox, intake, end))
        work.add_done_callback(lambda _: intake.forget_results())
        try:
            first = await outbox.get()
            if first is None:
                await work
            self.status, self._streams = 200, True
            head = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
            piece = first
            while piece is not None:
                await self._piece(piece)
                piece = await outbox.get()
            await work
            await self._send(
                {"type": "http.response.body", "body": DONE if closes else b"", "more_body": False}
            )
        finally:
            await cancelled([work])
            outbox.close()

    async def _collect(
        self, events: AsyncGenerator[Event, None], outbox: Outbox, intake: Intake, end: float
    ) -> None:
        """Put events into the outbox."""
        try:
            async with asyncio.timeout_at(end), aclosing(events):
                async for event in events:
                    if event.optional and outbox.size > _BEHIND:
                        continue
                    await outbox.put(await intake.encoded(event.encode))
        except UnsentFull:
            raise not_read() from None
        finally:
            outbox.end()

    async def fail(self, error: APIError) -> None:
        """Send an error, as the response or in a stream that has begun."""
        if self._streams:
            await self._piece(Event("error", error.body).encode())
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self.status:
            await self.whole(error.status, encoded(error.body), error.headers)

    async def _piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def whole(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a response that is not a stream."""
        outbox, size = Outbox(self._unsent), len(body)
        try:
            if size > PIECE:
                try:
                    await outbox.put(body)
                except UnsentFull:
                    raise not_read() from None
                body = b""
            outbox.end()
            self.status = status
            head = {
                "content-type": "application/json",
                "cache-control": "no-store",
                "content-length": str(size),
                **(headers or {}),
            }
            pairs = [(key.lower().encode(), value.encode()) for key, value in head.items()]
            await self._send({"type": "http.response.start", "status": status, "headers": pairs})
            while (piece := await outbox.get()) is not None:
                await self._piece(piece)
            await self._send({"type": "http.response.body", "body": body})
        finally:
            outbox.close()


def not_read() -> APIError:
    """The error for a response without room in memory or files, because clients read too slowly."""
    return APIError(
        503,
        "there is no room for this response, because clients read too slowly; read "
        "it faster, or try again",
        type="server_error",
        code="answer_not_read",
        headers={"Retry-After": "30"},
    )


def check_encoding(headers: Headers) -> None:
    """Raise `APIError` for a compressed body, because its full size is unknown before decompression."""
    given = ", ".join(headers.getlist("content-encoding")).strip()
    if given.lower() not in ("", "identity"):
        raise APIError(
            415,
            f"the body is compressed (Content-Encoding: {shown(given)}), which this server "
            "does not support. Next: send it uncompressed, without that header",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )


def forgotten(error: BaseException | None) -> None:
    """Release the traceback of an answered error. Its frames keep bodies and pictures until Python next collects
    cycles."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


async def disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def answer_to(error: Exception, path: str) -> APIError:
    """The response to an error; failures of the server are logged with their traceback."""
    if isinstance(error, APIError):
        return error
    blameless = isinstance(error, CM3Error) and not isinstance(
        error, (CheckpointError, DeviceError)
    )
    failed_inside = isinstance(error, GenerationError) and (
        error.place == "engine"
        or (
            error.__cause__ is not None
            # raised by a component while it works on an accepted request
            and (error.place.startswith("request ") or not isinstance(error.__cause__, CM3Error))
        )
    )
    if isinstance(error, CM3Error) and error.place.startswith("dataset."):  # not named by a request
        logger.error("POST %s failed: %s", path, in_one_line(error))
        return no_documents()
    if isinstance(error, CM3Error) and blameless and not failed_inside:
        return of_model(error)
    logger.error("POST %s failed", path, exc_info=error)
    return internal()


_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


class Metrics:
    """Counters and gauges of one server, in their own registry; and, on Linux, what the process uses."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # process_cpu_seconds_total, memory, open files
        self._requests = Counter(
            "cm3_requests",
            "Answered requests; status 499: the client disconnected",
            ["route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cm3_request_seconds",
            "Seconds from a request's arrival to the end of its response",
            ["route"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._refused = Counter(
            "cm3_refused",
            "Requests and connections that were refused or closed, by the error's code: invalid_api_key, "
            "body_too_large, connections, slow_reader, ...",
            ["reason"],
            registry=self.registry,
        )
        self._results = Counter(
            "cm3_results",
            "Finished results: drawn, inpainted and edited pictures, captions, answers",
            ["sort"],
            registry=self.registry,
        )

    def watch(self, queue: FairQueue, pool: ModelPool, gate: Gate) -> None:
        """Export the state of the queue, the models and the memory for requests."""
        unsent = gate.unsent
        for name, help, value in (
            ("cm3_waiting_requests", "Requests waiting for their turn", lambda: queue.waiting),
            ("cm3_results_in_flight", "Results being generated", lambda: queue.in_flight),
            ("cm3_engine_requests", "Engine requests in flight", lambda: pool.num_requests),
            ("cm3_models_loaded", "Models in memory", lambda: len(pool.loaded)),
            ("cm3_model_loads", "Models loaded since the start", lambda: pool.loads),
            ("cm3_body_bytes", "Bytes of bodies in flight", lambda: gate.bodies.in_flight),
            ("cm3_pixels", "Pixels of uploaded pictures in flight", lambda: gate.pixels.in_flight),
            (
                "cm3_result_pixels",
                "Pixels of results being drawn or waiting to be encoded",
                lambda: gate.results.in_flight,
            ),
            ("cm3_unsent_bytes", "Bytes of unread responses, in memory", lambda: unsent.in_memory),
            ("cm3_spooled_bytes", "Bytes of unread responses, in files", lambda: unsent.in_files),
        ):
            Gauge(name, help, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a refused request or connection."""
        self._refused.labels(reason or "other").inc()

    def finished(self, sort: str) -> None:
        """Count a finished result."""
        self._results.labels(sort).inc()

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
