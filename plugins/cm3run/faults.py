"""Errors of components, third-party ones included: described in words, and confined to the request that caused them.

A component may raise anything: `SystemExit` of a library that gives up, `StopIteration`, an error whose own text
can't be read. An `except Exception` lets some of these pass, which then end a thread, an event loop, or the
process with exit code 0.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from cm3core.errors import CM3Error, GenerationError

#: Next step of an error that a component raised.
SEE_TRACEBACK = "see the traceback of its cause: cm3 -v, or CM3_TRACEBACK=1"
#: Characters of an error's text that are told.
_MOST_TOLD = 4000


def told(error: BaseException) -> str:
    """The type and the text of any error, even of one whose text can't be read.

    >>> told(KeyError("a")), told(SystemExit())
    ("KeyError: 'a'", 'SystemExit')
    """
    name = type(error).__name__
    try:
        text = str(error)[:_MOST_TOLD]
    except BaseException as unreadable:
        raise_interrupt(unreadable)
        return f"{name} (its text can't be read: {type(unreadable).__name__})"
    return f"{name}: {text}" if text else name


def raise_interrupt(error: BaseException) -> None:
    """Raise a user's Ctrl-C again: Python delivers it to the main thread alone, in the middle of anything."""
    if isinstance(error, KeyboardInterrupt) and (
        threading.current_thread() is threading.main_thread()
    ):
        raise error


def parts_of(error: BaseException) -> tuple[str, str, str] | None:
    """Place, cause and next step of a `CM3Error`; None of others, and of one that lacks them."""
    if not isinstance(error, CM3Error):
        return None
    try:
        return f"{error.place}", f"{error.cause}", f"{error.next_step}"
    except BaseException as unreadable:
        raise_interrupt(unreadable)
        return None


class AlreadyReported(SystemExit):
    """Ends a process in silence, with that exit code: another process has reported the error of both."""


class contained:  # noqa: N801  # used as a function
    """Context that turns `StopIteration`, and anything that is not an `Exception`, into a `GenerationError`.

    Other errors pass as they are, and so does a user's Ctrl-C.

    Args:
        place: of the error.
        besides: further types of errors that mean something else to the caller.
    """

    def __init__(self, place: str, *besides: type[Exception]) -> None:
        self.place = place
        self.besides: tuple[type[Exception], ...] = (StopIteration, *besides)

    def __enter__(self) -> None:
        """Nothing is needed."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise the error in its new form."""
        passes = isinstance(error, AlreadyReported) or (
            isinstance(error, Exception) and not isinstance(error, self.besides)
        )
        if error is None or passes:
            return
        raise_interrupt(error)
        raise GenerationError(self.place, told(error), SEE_TRACEBACK) from error


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic of a library in Rust, which is no `Exception`, into `ValueError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library gave up: {error}") from error
