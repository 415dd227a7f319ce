"""The connections of a server: their number, how long they may wait for the client, and requests that are not HTTP.

uvicorn reads HTTP (with h11) but does not cover these: its connection limit refuses the newest client, its timeout ends
with the first byte of a request's head, and it answers invalid HTTP in plain text.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cm3serve.errors import APIError, framing

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn.server import ServerState

    from cm3serve.settings import Limits

#: Maximum bytes of a request's head: its line and its headers.
MOST_HEAD = 16 << 10
#: Bytes to parse at a time, so that a body in tiny chunks is detected before it costs much.
_SLICE = 32 << 10
#: Maximum bytes of chunk lengths and extensions in a body, in addition to a quarter of its own
#: bytes.
_FRAMING = 16 << 10
#: The share of connections to close at once if there are too many.
_BATCH = 32
#: Maximum seconds between two checks of all connections.
_LOOK = 1.0
#: State of a connection -> its order of closing; for later states the server has already done work.
_ORDER = {"request": 0, "head": 0, "rest": 1, "reading": 1, "body": 2}


class Wire(H11Protocol):
    """A connection.

    Args:
        keeper: keeps all connections.
        config, server_state, app_state, _loop: as passed by uvicorn.
    """

    def __init__(
        self,
        keeper: Keeper,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.keeper = keeper
        #: The time when its current wait began.
        self.since = self.loop.time()
        #: Whether data that arrived with it could not be read yet.
        self.is_new = True
        self._in_head = True  # a head has begun; also a new connection owes one
        self._framing = 0  # bytes of the request that are neither head nor body
        self._body = 0

    @property
    def address(self) -> str:
        """The client's address."""
        return self.client[0] if self.client else ""

    @property
    def waits(self) -> str:
        """What the connection waits for from its client: "head", "request", "body", "reading" (of the response), or
        "rest" (of a body that was answered before its end). "" if the server is working."""
        if self.transport.is_closing():
            return "reading"
        if self.cycle is not None and not self.cycle.response_complete:
            if self.flow.write_paused:
                return "reading"
            return "body" if self.cycle.more_body and not self.flow.read_paused else ""
        if self.transport.get_write_buffer_size():
            return "reading"
        if self.cycle is not None and self.conn.their_state is h11.SEND_BODY:
            return "rest"
        return "head" if self._in_head else "request"

    # ---- called by asyncio and uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # asyncio's own signature
        super().connection_made(transport)
        self.keeper.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.keeper.left(self)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE):
            if self.transport.is_closing():
                return
            if self.waits == "rest" and self._is_chunked():
                return  # nobody reads it, and parsing it would cost more than sending it
            self._read(data[start : start + _SLICE])

    def _read(self, data: bytes) -> None:
        before, in_body = self.cycle, self.waits == "body"
        size = len(before.body) if before is not None else 0
        super().data_received(data)
        if self.cycle is not before:  # a new request
            self._framing = self._body = 0
            self._in_head, self.since = False, self.loop.time()
        elif in_body:
            grown = len(self.cycle.body) - size
            self._body += grown
            self._framing += len(data) - grown
            too_much = self._framing > _FRAMING + self._body // 4
            if too_much and self.cycle.more_body and self._is_chunked():
                self._refuse(framing(400, "its body arrives in too many tiny chunks"))
        elif self.waits == "request":
            self._in_head, self.since = True, self.loop.time()

    def _is_chunked(self) -> bool:
        return any(name == b"transfer-encoding" for name, _ in self.headers or ())

    def on_response_complete(self) -> None:
        self.since, self._in_head = self.loop.time(), False
        super().on_response_complete()

    def pause_writing(self) -> None:
        self.since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self.since = self.loop.time()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that h11 can't read as HTTP."""
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        reason = str(error or msg)
        if status == 431:
            pending = self.conn.trailing_data[0]
            if self.waits == "body":
                status, reason = 400, "a line of its body has no end"
            elif b"\n" not in pending.lstrip(b"\r\n"):
                status, reason = 414, f"its address has more than {MOST_HEAD:,} bytes"
            else:
                reason = f"its headers have more than {MOST_HEAD:,} bytes"
        self._refuse(framing(status, reason))

    # ---- ending

    def _refuse(self, error: APIError) -> None:
        """Answer in the API's format, if nothing was answered yet, and close."""
        self.keeper.refused(error.code or "")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # its request ends as if the client had disconnected
            self.cycle.message_event.set()
        if not self.transport.is_closing() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body).encode()
            head = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                *error.headers.items(),
            ]
            answer = h11.Response(status_code=error.status, headers=head, reason=b"")
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def expire(self, now: float, limits: Limits) -> None:
        """Close the connection if it waited too long for its client. The application times bodies itself."""
        waits, waited = self.waits, now - self.since
        if waits == "head" and waited > limits.header_seconds:
            if self.conn.trailing_data[0]:
                self._refuse(
                    framing(408, f"its head did not arrive within {limits.header_seconds:g} s")
                )
            else:
                self.transport.close()
        elif waits in ("request", "rest") and waited > limits.idle_seconds:
            self.transport.close()
        elif waits == "reading" and waited > limits.send_seconds:
            self.keeper.refused("slow_reader")
            self.transport.abort()


class Keeper:
    """All connections of a server. If there are too many, those that have waited longest for their client are
    closed, beginning with the clients that have the most.

    Args:
        limits: the limits of connections.
        refused: called with the reason for each closed connection.
    """

    def __init__(self, limits: Limits, refused: Callable[[str], None]) -> None:
        self.limits, self.refused = limits, refused
        self.wires: set[Wire] = set()
        self._looks = False

    def __call__(self, **given: Any) -> Wire:
        """Make a connection, as called by uvicorn."""
        return Wire(self, **given)

    def arrived(self, wire: Wire) -> None:
        """Add an open connection.

        It is not closed for another one before the loop has turned twice, because its client may have sent a
        request immediately, which is read only then."""
        self.wires.add(wire)
        wire.loop.call_soon(wire.loop.call_soon, setattr, wire, "is_new", False)
        if len(self.wires) > self.limits.connections:
            self._make_room(wire)
        if not self._looks:
            self._looks = True
            self._look_again(wire.loop)

    def left(self, wire: Wire) -> None:
        """Remove a closed connection."""
        self.wires.discard(wire)

    def _make_room(self, new: Wire) -> None:
        number = Counter(wire.address for wire in self.wires)
        all_waiting = [
            (_ORDER[waits], -number[wire.address], wire.since, id(wire), wire)
            for wire in self.wires
            if wire is not new and (waits := wire.waits)
        ]
        # if all arrived in one turn of the loop, close the first ones, not the newest
        waiting = [one for one in all_waiting if not one[-1].is_new] or all_waiting
        for *_, wire in sorted(waiting)[: max(1, self.limits.connections // _BATCH)]:
            self.refused("connections")
            wire.transport.abort()
            self.wires.discard(wire)
        if not waiting:
            self.refused("connections")
            new.transport.abort()
            self.wires.discard(new)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        limits = self.limits
        times = limits.header_seconds, limits.idle_seconds, limits.send_seconds
        loop.call_later(min(_LOOK, *(one / 4 for one in times)), self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        for wire in list(self.wires):
            wire.expire(loop.time(), self.limits)
        self._looks = bool(self.wires)
        if self._looks:
            self._look_again(loop)


def config_of(
    app: ASGIApp, limits: Limits, refused: Callable[[str], None] = lambda reason: None, **more: Any
) -> uvicorn.Config:
    """uvicorn's configuration for an application whose connections have these limits.

    Args:
        app: the application.
        limits: the limits of connections.
        refused: called with the reason for each closed connection.
        more: further options of uvicorn.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        http=Keeper(limits, refused),  # type: ignore[arg-type]  # makes connections, as a class would
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        **more,
    )
