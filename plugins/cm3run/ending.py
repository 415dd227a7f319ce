"""End a process whose threads may not let it end."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn


def end_at_once(code: int) -> NoReturn:
    """Exit the process regardless of its threads, without what Python does when it ends."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader exited, or it is closed
            stream.flush()
    os._exit(code)


def end_soon(code: int, seconds: float = 5.0) -> None:
    """Exit the process after some seconds, unless it ends by itself: Python waits for threads, which may build an index for
    minutes."""
    timer = threading.Timer(seconds, end_at_once, (code,))
    timer.daemon = True
    timer.start()


def end_of_several(codes: Sequence[int]) -> None:
    """At exit, after all other exit handlers: end one of several processes at once, with the code that `codes` got.

    A thread of gloo that drops its last tensor while Python ends aborts the process, though its work is done
    (https://github.com/pytorch/pytorch/pull/179291): torchrun then ends the others and reports a failure. Destroying
    the groups ends these threads only where nothing refers to them any more, and divided decoders do.
    """
    if codes and "torch.distributed" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1":
        end_at_once(codes[0])
