"""The front end of several servers: it keeps a request until one of them has answered it.

If a server is lost during a request, another one runs the request again with the same seed, and so with the same
result. Events of a stream that the client already has are not sent again. This module does not know how servers are
started; `ray` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, MutableMapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias

from starlette.datastructures import Headers

from cm3serve.errors import APIError
from cm3serve.http import SEED, Reply, answer_to, disconnected
from cm3serve.images_api import MOST_RANDOM
from cm3serve.intake import Gate, Intake
from cm3serve.sending import Event

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from cm3serve.settings import Limits

logger = logging.getLogger("cm3.serve")

Message: TypeAlias = MutableMapping[str, Any]
#: Runs a request on some server: (scope, body) -> the ASGI messages of its response.
Call: TypeAlias = Callable[[dict[str, Any], bytes], AsyncGenerator[Message, None]]

#: Maximum number of servers lost during one request, because the request itself may crash them.
MOST_LOST = 2
#: The keys of a request's scope that a server reads.
SENT = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "query_string",
    "headers",
    "client",
    "server",
)


class ServerLost(Exception):
    """The server of a request was lost before or during its response."""


class ServersBusy(Exception):
    """All servers have their maximum number of requests."""


class Door:
    """An ASGI application that passes requests on.

    Args:
        call: runs a request; raises `ServerLost` and `ServersBusy`. Closing it stops the work.
        limits: the limits of requests.
    """

    def __init__(self, call: Call, limits: Limits) -> None:
        self.call, self.limits, self.gate = call, limits, Gate(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Relayed(send)
        try:
            if scope["path"] == "/healthz":
                await reply.json({"status": "ok"})
            elif scope["path"] == "/metrics":
                raise APIError(
                    404,
                    "each server counts its own requests; Ray exports the counts of all servers, see "
                    "docs/server.md",
                    code="unknown_path",
                )
            else:
                await self._answer(scope, receive, reply)
        except Exception as error:  # any error becomes a response in the API's format
            await reply.fail(answer_to(error, scope["path"]))

    async def _answer(self, scope: Scope, receive: Receive, reply: Relayed) -> None:
        client = (scope.get("client") or ("unknown",))[0]
        intake = Intake(self.gate, client)
        try:
            # keep the body for the next server
            body = bytes(await intake.body(Headers(scope=scope), receive))
            await self._done(scope, body, receive, reply)
        finally:
            intake.close()

    async def _done(self, scope: Scope, body: bytes, receive: Receive, reply: Relayed) -> None:
        """Let servers answer a request whose body has arrived."""
        own = {name: scope[name] for name in SENT if name in scope}
        own[SEED] = secrets.randbelow(MOST_RANDOM)
        work = asyncio.create_task(self._relay(own, body, reply))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = work.done()
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if ended:
            work.result()

    async def _relay(self, scope: dict[str, Any], body: bytes, reply: Relayed) -> None:
        """Run the request until it is answered."""
        try:
            async with asyncio.timeout(self.limits.seconds):
                for lost in range(MOST_LOST + 1):
                    try:
                        async with aclosing(self.call(scope, body)) as messages:
                            async for message in messages:
                                await reply.pass_on(message)
                        return
                    except ServerLost as error:
                        logger.warning(
                            "%s %s: its server was lost (%s)%s",
                            scope["method"],
                            scope["path"],
                            error,
                            "; the request runs again" if lost < MOST_LOST else "",
                        )
                        reply.begin_again()
        except TimeoutError:
            raise APIError(
                504,
                f"the response took more than {self.limits.seconds:g} s",
                type="server_error",
                code="timeout",
            ) from None
        except ServersBusy as error:
            raise APIError(
                429,
                "all servers are busy; try again in 5 s",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": "5"},
            ) from error
        raise APIError(
            503,
            f"{MOST_LOST + 1} servers crashed during this request; see their logs",
            type="server_error",
            code="servers_lost",
        )


class Relayed(Reply):
    """The response to one client: the messages of a server and, if it is lost, those of the next one."""

    def __init__(self, send: Send) -> None:
        super().__init__(send)
        self._head: Message | None = None
        self._pieces: list[Message] = []  # a response that is not a stream is sent as a whole
        self._sent: set[object] = set()  # events of a stream
        self._number = 0  # of the event, in this attempt

    def begin_again(self) -> None:
        """Prepare for another server, which answers from the beginning."""
        self._head, self._number = None, 0
        self._pieces.clear()

    async def pass_on(self, message: Message) -> None:
        """Send the events that the client does not have yet."""
        if message["type"] == "http.response.start":
            self._head = message
            if _is_stream(message) and not self.status:
                self.status, self._streams = message["status"], True
                await self._send(message)
            return
        assert message["type"] == "http.response.body"
        assert self._head is not None
        if self._streams:
            await self._event(message)
            return
        self._pieces.append(message)
        if not message.get("more_body", False):
            self.status = self._head["status"]
            for one in (self._head, *self._pieces):
                await self._send(one)

    async def _event(self, message: Message) -> None:
        assert self._head is not None
        if not _is_stream(
            self._head
        ):  # the next server refuses a request that the lost one had begun to answer
            self._pieces.append(message)
            if not message.get("more_body", False):
                refusal = json.loads(b"".join(one.get("body", b"") for one in self._pieces))
                await self._piece(Event("error", refusal).encode())
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        name, self._number = event_name(message.get("body", b""), self._number), self._number + 1
        if name not in self._sent or not message.get("more_body", False):
            self._sent.add(name)
            await self._send(message)


def event_name(event: bytes, number: int) -> object:
    r"""A key that identifies an event of a stream in every attempt.

    Args:
        event: the event's bytes.
        number: the number of events before it in this attempt, which identifies chunks of a chat.

    >>> event_name(b'event: set.picture\ndata: {"type": "set.picture", "index": 2}\n\n', 7)
    ('set.picture', 2, None)
    >>> event_name(b'data: {"choices": []}\n\n', 7)
    7
    """
    if not event.startswith(b"event: "):
        return number
    body = json.loads(event.partition(b"\ndata: ")[2])
    return body["type"], body.get("index"), body.get("partial_image_index")


def _is_stream(head: Message) -> bool:
    return Headers(raw=head["headers"]).get("content-type", "").startswith("text/event-stream")
