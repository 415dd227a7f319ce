"""Stop long work between two steps, so that it can be saved first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loop checks after each step.

    A second Ctrl-C stops immediately. `received` is the signal's number, None before the first signal.

    Args:
        patience_s: seconds within which further signals count as the same one, because a launcher may pass
            on what the terminal has already sent.
    """

    def __init__(self, patience_s: float = 0.0) -> None:
        self.received: int | None = None
        self._patience_s, self._since = patience_s, 0.0
        self._before: dict[int, Any] = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._since >= self._patience_s:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there can handlers be set
            self._before = {
                number: signal.signal(number, self._receive)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
