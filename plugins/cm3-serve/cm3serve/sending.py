"""Sending to clients: server-sent events, and the buffering of unread responses in memory up to a limit, then in
temporary files.

A slow client never slows down the generation of its response.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3serve.settings import Limits


#: Closes a stream of chat chunks.
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Event:
    """One event: `name` is also the body's `type`; "" for chat chunks, which have none.

    `optional`: it may be left out for a slow client.
    """

    name: str
    body: dict[str, Any]
    optional: bool = False

    def encode(self) -> bytes:
        """The event as lines."""
        body = {"type": self.name, **self.body} if self.name else self.body
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {json.dumps(body)}\n\n".encode()


#: Bytes to pass to a connection at a time.
PIECE = 256 << 10


class UnsentFull(Exception):
    """There is no room for more unread data."""


class Unsent:
    """The unsent responses of a server.

    Args:
        limits: the limits of requests.
    """

    def __init__(self, limits: Limits) -> None:
        self.most_in_memory, self.most_in_files = limits.unsent_bytes, limits.spooled_bytes
        self.in_memory = self.in_files = 0


class Outbox:
    """The unsent data of one response, in order. Only one coroutine puts, and one gets.

    Args:
        unsent: the unsent data of all responses.
        piece: bytes to return at a time; 0: the pieces as they were put.
    """

    def __init__(self, unsent: Unsent, piece: int = PIECE) -> None:
        self._all, self._piece = unsent, piece
        self._waiting: deque[bytes | int] = deque()  # a number means bytes in the file
        self._file: IO[bytes] | None = None
        self._read = self._written = 0  # places in the file
        self._arrived = asyncio.Event()
        self._ended = self._closed = False
        self._lock = threading.Lock()  # of the file

    @property
    def size(self) -> int:
        """The number of waiting bytes."""
        return sum(one if isinstance(one, int) else len(one) for one in self._waiting)

    async def put(self, data: bytes) -> None:
        """Add data to send.

        Raises:
            UnsentFull: there is no room for it.
        """
        for piece in _pieces(data, self._piece or len(data)):
            if self._all.in_memory + len(piece) <= self._all.most_in_memory:
                self._all.in_memory += len(piece)
                self._waiting.append(piece)
            else:
                await self._spool(piece)
            self._arrived.set()

    async def _spool(self, piece: bytes) -> None:
        used, most = self._all.in_files + len(piece), self._all.most_in_files
        if used > most or self._written + len(piece) > most // 4:
            raise UnsentFull
        place, size = self._written, len(piece)
        self._all.in_files += size
        self._written += size
        try:
            await asyncio.to_thread(self._write, piece, place)
        except BaseException as error:
            self._all.in_files -= size
            if isinstance(error, OSError):
                raise UnsentFull from error
            raise
        self._waiting.append(size)

    def _write(self, data: bytes, place: int) -> None:
        with self._lock:
            if self._closed:  # its descriptor may belong to another file
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="cm3-serve-")  # noqa: SIM115 (closed by `close`)
            view = memoryview(data)
            while view:
                done = os.pwrite(self._file.fileno(), view, place)
                view, place = view[done:], place + done

    def _read_again(self, size: int, place: int) -> bytes:
        with self._lock:
            assert self._file is not None
            return b"" if self._closed else os.pread(self._file.fileno(), size, place)

    def end(self) -> None:
        """Mark the end of the data."""
        self._ended = True
        self._arrived.set()

    async def get(self) -> bytes | None:
        """Wait for the next piece and return it; None at the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        one = self._waiting.popleft()
        if isinstance(one, bytes):
            self._all.in_memory -= len(one)
            return one
        try:
            data = await asyncio.to_thread(self._read_again, one, self._read)
        finally:  # the client may leave meanwhile, and `close` does not see this piece anymore
            self._read += one
            self._all.in_files -= one
        if (
            self._file is not None and self._read == self._written
        ):  # others need the room on the disk
            self._read = self._written = 0
            os.ftruncate(self._file.fileno(), 0)
        return data

    def close(self) -> None:
        """Drop unsent data."""
        for one in self._waiting:
            if isinstance(one, int):
                self._all.in_files -= one
            else:
                self._all.in_memory -= len(one)
        self._waiting.clear()
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    if len(data) <= size:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), size):
        yield bytes(view[start : start + size])
