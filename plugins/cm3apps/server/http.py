"""One request, from its body to its answer: limits, errors in the API's shape, clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.datastructures import Headers

from cm3apps.server.errors import APIError, in_one_line, internal, no_documents, of_model
from cm3apps.server.fields import Field, json_object, read, shown
from cm3apps.server.forms import form_values
from cm3apps.server.pictures import Upload
from cm3apps.server.streaming import DONE, Event
from cm3core.errors import CheckpointError, CM3Error, DeviceError, GenerationError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from cm3apps.server.metrics import Metrics
    from cm3apps.server.settings import Limits

logger = logging.getLogger("cm3.serve")

Answer: TypeAlias = dict[str, Any] | AsyncGenerator[Event, None]
#: What a route does: (client, values, uploads) -> the answer.
Handler: TypeAlias = Callable[
    [str, Mapping[str, Any], Mapping[str, Sequence[Upload]]], Awaitable[Answer]
]
#: Key of a scope: the seed of a request that names none, see `door`.
SEED = "cm3.seed"
#: What is logged for a client that went away before its answer.
CLIENT_GONE = 499


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A POST route, as an ASGI application.

    Args:
        path: where it is, also its name in metrics.
        fields: what its body may hold.
        handler: does the work.
        limits: of requests.
        metrics: counts requests.
        forms: whether it also takes `multipart/form-data`.
        closes: whether its streams end with `[DONE]`.
        summary: one line for the documentation.
    """

    path: str
    fields: Sequence[Field]
    handler: Handler
    limits: Limits
    metrics: Metrics
    summary: str
    forms: bool = False
    closes: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors are answered and logged once."""
        start = time.perf_counter()
        client = (scope.get("client") or ("unknown",))[0]
        reply = Reply(send)
        try:
            values, uploads = await self._read(Headers(scope=scope), receive)
            if SEED in scope:  # a door's: another server would give the same result
                values.setdefault("seed", scope[SEED])
            gone = await self._watched(client, values, uploads, reply, receive)
            status, note = (CLIENT_GONE, "the client went away") if gone else (reply.status, "")
        except Exception as error:  # any becomes an answer in the API's own shape
            answer = answer_to(error, self.path)
            await reply.fail(answer)
            status, note = answer.status, answer.message
        seconds = time.perf_counter() - start
        self.metrics.answered(self.path, status, seconds)
        logger.info("%s POST %s %d %.2fs %s", client, self.path, status, seconds, note[:300])

    async def _read(
        self, headers: Headers, receive: Receive
    ) -> tuple[dict[str, Any], dict[str, list[Upload]]]:
        sort = headers.get("content-type", "").partition(";")[0].strip().lower()
        accepted = ["application/json", *(["multipart/form-data"] if self.forms else [])]
        if sort not in accepted:
            raise APIError(
                415, f"the body must be {' or '.join(accepted)}", code="unsupported_media_type"
            )
        check_encoding(headers)
        body = await body_of(headers, receive, self.limits)
        if sort == "application/json":
            return read(self.fields, await asyncio.to_thread(json_object, body)), {}
        given, uploads = await form_values(headers, body, self.fields, self.limits)
        return read(self.fields, given), uploads

    async def _watched(
        self,
        client: str,
        values: Mapping[str, Any],
        uploads: Mapping[str, Sequence[Upload]],
        reply: Reply,
        receive: Receive,
    ) -> bool:
        """Do the work while the client is there. Returns whether it went away first, which ends the
        work and frees its rows."""
        work = asyncio.create_task(self._work(client, values, uploads, reply))
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

    async def _work(
        self,
        client: str,
        values: Mapping[str, Any],
        uploads: Mapping[str, Sequence[Upload]],
        reply: Reply,
    ) -> None:
        try:
            async with asyncio.timeout(self.limits.seconds):
                answer = await self.handler(client, values, uploads)
                if isinstance(answer, dict):
                    await reply.json(answer)
                else:
                    await reply.stream(answer, closes=self.closes)
        except TimeoutError:
            raise APIError(
                504,
                f"the answer took more than {self.limits.seconds:g} s",
                type="server_error",
                code="timeout",
            ) from None


class Reply:
    """What is sent to one client. `status` is 0 until something is."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self._streams = send, 0, False

    async def json(self, body: Mapping[str, Any], status: int = 200) -> None:
        """Send a whole answer."""
        await self._whole(status, json.dumps(body).encode(), {})

    async def stream(self, events: AsyncGenerator[Event, None], *, closes: bool) -> None:
        """Send events as they happen. Errors before the first one are not in the stream."""
        try:
            first = await anext(events)
            self.status, self._streams = 200, True
            head = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
            await self._piece(first.encode())
            async for event in events:
                await self._piece(event.encode())
            await self._send(
                {"type": "http.response.body", "body": DONE if closes else b"", "more_body": False}
            )
        finally:
            await events.aclose()

    async def fail(self, error: APIError) -> None:
        """Send an error: as the answer, or in the stream that has begun."""
        if self._streams:
            await self._piece(Event("error", error.body).encode())
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self.status:
            await self._whole(error.status, json.dumps(error.body).encode(), error.headers)

    async def _piece(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.status = status
        head = {
            "content-type": "application/json",
            "cache-control": "no-store",
            "content-length": str(len(body)),
            **headers,
        }
        pairs = [(key.lower().encode(), value.encode()) for key, value in head.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
        await self._send({"type": "http.response.body", "body": body})


def check_encoding(headers: Headers) -> None:
    """Raise `APIError` for a compressed body: what it grows to is known only when it has grown."""
    given = ", ".join(headers.getlist("content-encoding")).strip()
    if given.lower() not in ("", "identity"):
        raise APIError(
            415,
            f"the body is compressed (Content-Encoding: {shown(given)}), and this server reads none "
            "that is. Next: send it as it is, without that header",
            code="unsupported_content_encoding",
            headers={"Accept-Encoding": "identity"},
        )


async def body_of(headers: Headers, receive: Receive, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        APIError: 413, it is too long; 408, it takes too long; 400, the client went away.
    """
    too_long = APIError(
        413, f"the body has more than {limits.body_bytes:,} bytes", code="body_too_large"
    )
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limits.body_bytes:
        raise too_long
    pieces, size = [], 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise APIError(400, "the body is cut short", code="incomplete_body")
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > limits.body_bytes:
                    raise too_long
                if not message.get("more_body", False):
                    return b"".join(pieces)
    except TimeoutError:
        raise APIError(
            408, f"the body did not arrive within {limits.body_seconds:g} s", code="timeout"
        ) from None


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def answer_to(error: Exception, path: str) -> APIError:
    """The answer to an error; those that are the server's fault are logged with their traceback."""
    if isinstance(error, APIError):
        return error
    blameless = isinstance(error, CM3Error) and not isinstance(
        error, (CheckpointError, DeviceError)
    )
    failed_inside = isinstance(error, GenerationError) and (
        error.place == "engine"
        or (
            error.__cause__ is not None
            # what a component raises while it works on a request that was accepted
            and (error.place.startswith("request ") or not isinstance(error.__cause__, CM3Error))
        )
    )
    if isinstance(error, CM3Error) and error.place.startswith("dataset."):  # no request names it
        logger.error("POST %s failed: %s", path, in_one_line(error))
        return no_documents()
    if isinstance(error, CM3Error) and blameless and not failed_inside:
        return of_model(error)
    logger.error("POST %s failed", path, exc_info=error)
    return internal()
