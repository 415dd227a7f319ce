"""The watchdog of a process: it shuts connections whose server does not answer in time.

A stopped server, or one behind a dead network, never answers, and libpq waits for it for ever.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Seconds without a connection in use after which the watchdog's thread ends.
_IDLE = 30.0


class Watched:
    """A connection in use.

    Args:
        line: its socket, or a copy.
        until: when the server counts as lost (`time.monotonic`); may be moved on.
    """

    def __init__(self, line: socket.socket, until: float) -> None:
        self.line, self.until = line, until
        #: Whether the connection was shut.
        self.silent = False


class Watchdog:
    """One thread for all connections in use, which sleeps until the first of their time limits."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start without a connection and a thread, as at first and in a forked process."""
        self._changed = threading.Condition()
        self._watched: set[Watched] = set()
        self._wake = 0.0
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, one: Watched) -> Iterator[None]:
        """Context in which this connection is shut at the end of its time."""
        with self._changed:
            self._watched.add(one)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cm3-watchdog", daemon=True)
                self._wake = one.until
                self._thread.start()
            elif one.until < self._wake:  # rare: a limit shorter than those before
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.discard(one)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for one in [one for one in self._watched if one.until <= now]:
                    one.silent = True
                    self._watched.discard(one)
                    with suppress(OSError):
                        one.line.shutdown(socket.SHUT_RDWR)
                unused = not self._watched
                self._wake = now + _IDLE if unused else min(one.until for one in self._watched)
                self._changed.wait(self._wake - now)
                if unused and not self._watched and time.monotonic() >= self._wake:
                    self._thread = None
                    return


WATCHDOG = Watchdog()
os.register_at_fork(after_in_child=WATCHDOG.start)
