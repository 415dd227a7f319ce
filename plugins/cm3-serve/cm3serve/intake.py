"""The data of requests, from the first byte to arrays. Nothing is read, parsed or decoded without room for it.

All requests share one budget of bytes and one of pixels. Parsing and decoding have their own threads, so that they
block neither the event loop nor the encoding of results. Results that wait for encoding have their own budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import Headers

from cm3serve.errors import APIError, framing, invalid_value
from cm3serve.pictures import Upload
from cm3serve.scheduling import FairQueue, Lease
from cm3serve.sending import Unsent

if TYPE_CHECKING:
    from starlette.types import Receive

    from cm3serve.settings import Limits

T = TypeVar("T")

#: Bodies up to this size never wait, so that a prompt is always accepted.
SMALL_BODY = 64 << 10
#: Bytes per second at which a body must arrive after a third of its time.
_SLOWEST = 1024
#: Threads that parse bodies and decode pictures; each may need 20 bytes per pixel.
THREADS = 2
#: Threads that encode results; each needs several times a result's size.
ENCODERS = max(2, min(8, os.cpu_count() or 1))
#: Characters that start or end a JSON value.
_STRUCTURE = (b",", b"[", b"{")
#: Freed memory is returned to the system after requests that used more than this.
_TRIM_BYTES, _TRIM_PIXELS, _TRIM_SECONDS = 1 << 20, 1_000_000, 1.0
#: Fields of bodies that contain pictures.
_PICTURES = ("image", "images", "mask", "documents", "condition", "messages", "image_url")


class Gate:
    """The server's memory that all requests share.

    Args:
        limits: the limits of requests.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        waiting = limits.waiting, limits.waiting_per_client
        self.bodies = FairQueue(limits.all_body_bytes, *waiting, "room for their bodies")
        self.pixels = FairQueue(limits.all_pixels, *waiting, "room for their pictures")
        #: Pixels of results, reserved before they are drawn and until they are encoded.
        self.results = FairQueue(limits.all_pixels, *waiting, "others' results to be encoded")
        self.unsent = Unsent(limits)
        self._encoding = FairQueue(ENCODERS, sys.maxsize, sys.maxsize)
        self._encoders = ThreadPoolExecutor(ENCODERS, "cm3-encode")
        self.threads = ThreadPoolExecutor(THREADS, "cm3-intake")
        self.parsing = asyncio.Lock()
        self._trims = False

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in one of the threads for uploads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)

    async def encoded(self, client: str, function: Callable[..., T], *arguments: Any) -> T:
        """Run the encoding of a client's results in a thread: few at a time, and the waiting client with the fewest in
        progress is next."""
        async with self._encoding.place(client, 1):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._encoders, function, *arguments)

    def trim(self) -> None:
        """Return freed memory to the system soon, once for all pending calls. Otherwise glibc keeps it in
        a pool for each thread."""
        if not self._trims:
            self._trims = True
            asyncio.get_running_loop().call_later(_TRIM_SECONDS, self._trim)

    def _trim(self) -> None:
        self._trims = False
        self.threads.submit(_give_back)

    def close(self) -> None:
        """Stop the threads."""
        for threads in (self.threads, self._encoders):
            threads.shutdown(wait=False, cancel_futures=True)


def _give_back() -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Intake:
    """The data of one request, and its share of the budgets.

    Args:
        gate: the memory that all requests share.
        client: the client's address.
    """

    def __init__(self, gate: Gate, client: str) -> None:
        self.gate, self.client = gate, client
        self.values: dict[str, Any] = {}
        self.uploads: Mapping[str, Sequence[Upload]] = {}
        self._bytes: Lease | None = None
        self._pixels: Lease | None = None
        self._results: Lease | None = None

    async def body(
        self, headers: Headers, receive: Receive, check: Callable[[bytes], None] | None = None
    ) -> bytearray:
        """The body, once there is room for it. See `body_of`."""
        length = announced(headers, self.gate.limits)
        if length is None:
            length = self.gate.limits.body_bytes
        if length > SMALL_BODY:
            self._bytes = await self._soon(self.gate.bodies.lease(self.client, length))
        body = await body_of(headers, receive, self.gate.limits, check)
        if self._bytes is not None:
            self._bytes.shrink(len(body))
        return body

    async def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """See `Gate.aside`."""
        return await self.gate.aside(function, *arguments)

    async def encoded(self, function: Callable[..., T], *arguments: Any) -> T:
        """See `Gate.encoded`."""
        return await self.gate.encoded(self.client, function, *arguments)

    async def room_for_results(self, pixels: int) -> None:
        """Wait until there is room for this many pixels of results. The room is reserved before a place in the engine,
        so that no place waits for an encoder, and kept until `forget_results`."""
        if self._pixels is None or not self._pixels.weight:  # otherwise they are already counted
            self._results = await self.gate.results.lease(self.client, pixels)

    async def parsed(self, function: Callable[..., T], *arguments: Any) -> T:
        """The values of a body. Large bodies are parsed one at a time, because four-byte letters make them four times as
        large, twice."""
        if self._bytes is None or self._bytes.weight < _TRIM_BYTES:
            return await self.gate.aside(function, *arguments)
        async with self.gate.parsing:
            return await self.gate.aside(function, *arguments)

    async def decoded(
        self, uploads: Sequence[Upload], work: Callable[[], T], *, results: int = 0
    ) -> T:
        """The result of `work` on pictures, once there is room for all of them.

        Args:
            uploads: the pictures; their sizes are checked before any is decoded, and their bytes are
                dropped afterwards.
            work: decodes them, one after the other, and returns something small.
            results: the number of results as large as these pictures together. The room for all is
                kept until the request ends, or until `forget_results`.

        Raises:
            APIError: one is not a picture, one or all are too large, or there is no room at the moment.
        """
        limits = self.gate.limits
        if uploads:
            sizes = await self.aside(lambda: [one.size(limits.picture_pixels) for one in uploads])
            pixels = sum(width * height for width, height in sizes)
            if pixels * (1 + results) > limits.all_pixels:
                raise self._too_large(uploads, pixels, results)
            weight = pixels * (1 + results)
            self._pixels = await self._soon(self.gate.pixels.lease(self.client, weight))
        made = await self.aside(work)
        for one in uploads:
            one.data = b""
        if not results:
            self.forget_results()
        return made

    def _too_large(self, uploads: Sequence[Upload], pixels: int, results: int) -> APIError:
        what = f"{len(uploads)} pictures" if len(uploads) > 1 else "the picture"
        what += f" and {results} results as large" if results else ""
        return invalid_value(
            uploads[0].place,
            f"{what} have {pixels * (1 + results):,} pixels together, at most "
            f"{self.gate.limits.all_pixels:,} are allowed",
        )

    def forget_results(self) -> None:
        """Free the room for results, which are encoded, or smaller than the request's pictures."""
        if self._results is not None:
            self._done(self._results.weight > _TRIM_PIXELS)
            self._results.release()
        if self._pixels is not None:
            self._done(self._pixels.weight > _TRIM_PIXELS)
            self._pixels.release()

    def forget_pictures(self) -> None:
        """Free the room of the body, whose pictures are decoded or not needed."""
        for name in _PICTURES:
            self.values.pop(name, None)
        self.uploads = {}
        if self._bytes is not None:
            self._done(self._bytes.weight > _TRIM_BYTES)
            self._bytes.release()

    def close(self) -> None:
        """Free all room at the end of the request."""
        self.forget_pictures()
        self.forget_results()

    def _done(self, was_large: bool) -> None:
        if was_large:
            self.gate.trim()

    async def _soon(self, lease: Awaitable[Lease]) -> Lease:
        """The lease; raises `APIError` 429 after waiting for the time limit of a body."""
        seconds = self.gate.limits.body_seconds
        try:
            async with asyncio.timeout(seconds):
                return await lease
        except TimeoutError:
            raise APIError(
                429,
                f"other requests' bodies and pictures left no room for {seconds:g} s; try again later",
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, round(seconds)))},
            ) from None


def announced(headers: Headers, limits: Limits) -> int | None:
    """The announced length of a body; None if it arrives in chunks.

    Raises:
        APIError: 413 if it is too long.
    """
    if "transfer-encoding" in headers:
        return None
    given = headers.get("content-length", "0")
    length = int(given[:20]) if given.isdecimal() else 0  # the HTTP server refuses others
    if length > limits.body_bytes:
        raise _too_long(limits)
    return length


def _too_long(limits: Limits) -> APIError:
    return APIError(
        413, f"the body has more than {limits.body_bytes:,} bytes", code="body_too_large"
    )


async def body_of(
    headers: Headers,
    receive: Receive,
    limits: Limits,
    check: Callable[[bytes], None] | None = None,
) -> bytearray:
    """The whole body.

    Args:
        headers, receive: the request's headers and ASGI function.
        limits: the limits of requests.
        check: checks each piece as it arrives, and raises an error.

    Raises:
        APIError: 413 if it is too long, 408 if it is too slow, 400 if the client disconnected.
    """
    length = announced(headers, limits) or 0
    loop = asyncio.get_running_loop()
    start, grace = loop.time(), limits.body_seconds / 3
    # require an even pace for the announced length, so that nobody reserves room and sends nothing
    pace = max(_SLOWEST, length / (limits.body_seconds - grace))
    body = bytearray()
    try:
        while True:
            due = start + min(limits.body_seconds, grace + (len(body) + 1) / pace)
            async with asyncio.timeout_at(due):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise APIError(400, "the body is incomplete", code="incomplete_body")
            piece = message.get("body", b"")
            if check is not None:
                check(piece)
            body += piece
            if len(body) > limits.body_bytes:
                raise _too_long(limits)
            if not message.get("more_body", False):
                return body
    except TimeoutError:
        raise APIError(
            408,
            f"{len(body):,} bytes of the body arrived in {loop.time() - start:.1f} s, which is too slow; "
            f"the limit is {limits.body_seconds:g} s",
            code="timeout",
        ) from None


class Structure:
    """Counts the values of a JSON body while it arrives, because 32 MiB of `[],[],...` take a gigabyte as Python
    lists. Commas in texts are counted too; they are few.

    Args:
        most: maximum number of commas and opening brackets.
    """

    def __init__(self, most: int) -> None:
        self.most, self.number = most, 0

    def __call__(self, piece: bytes) -> None:
        """Count in a piece; raises `APIError` if there are too many values."""
        self.number += sum(piece.count(one) for one in _STRUCTURE)
        if self.number > self.most:
            raise APIError(
                400,
                f"the body has more than {self.most:,} values (commas and opening brackets)",
                code="too_many_values",
            )


def check_length_is_given(headers: Headers) -> None:
    """Raise `APIError` 411 for a body without a length, which HTTP would treat as empty."""
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise framing(411, "it has neither a Content-Length nor chunks")
