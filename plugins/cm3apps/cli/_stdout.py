"""Keeps stdout for a command's own output while plugins are imported and described, and reports one that
can't be written.

A script that reads `cm3 plugin list --json` must get JSON, whatever a plugin prints.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from cm3core.errors import FileError

_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Print on stderr what this process, or a child started meanwhile, prints on stdout."""
    with _descriptor_to_stderr(), contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    """Redirect the descriptor: children inherit it, and know nothing of `sys.stdout`."""
    _flush()
    try:
        kept = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)
    except OSError:  # one of the two is closed, so that there is nothing to redirect
        yield
        return
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)


def flush() -> None:
    """Write what is still to be written of stdout, while errors are still reported.

    Raises:
        OSError: it can't be written.
    """
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def lost_output(error: BaseException) -> FileError | None:
    """The error of a stdout that can't be written, such as a file on a full disk, which an `OSError` does not
    name: it is asked for one more character, to hear it from the system. None: it takes that. What is
    printed after an error goes nowhere."""
    if not isinstance(error, OSError) or error.filename is not None or sys.stdout is None:
        return None
    try:
        flush()
        os.write(sys.stdout.fileno(), b"\n")
    except ValueError:  # closed, or no file: a test's, or a notebook's
        return None
    except OSError as found:
        from cm3core.files import FREE_SPACE

        with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # a device
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return FileError(
            "standard output", f"can't be written ({found.strerror or found})", FREE_SPACE
        )
    return None


def _flush() -> None:
    """Write what was printed so far to where it belongs."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
