"""Read untrusted `.npy` files: any defect is a `ValueError`. Write `.npy` files completely, or raise. Reserve
the space of files that are written through a map.

numpy parses headers with Python's tokenizer and parser, which raise many types of errors. It writes arrays through C's
buffers, and does not check that the last bytes reached the disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

#: Errors that numpy raises for a malformed header, besides `ValueError`.
_HEADER_ERRORS = (
    TokenError,
    SyntaxError,
    TypeError,
    KeyError,
    OverflowError,
    EOFError,
    RecursionError,
    MemoryError,
)
#: Errors of a file system that can't allocate blocks in advance.
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def load_array(path: str | Path, *, memory_map: bool = False) -> npt.NDArray[Any]:
    """Return the array of a file, mapped read-only if `memory_map`.

    Raises:
        OSError: it can't be opened.
        ValueError: it is not a complete `.npy` file, or contains Python objects.
    """
    with readable_header():
        array: npt.NDArray[Any] = np.load(
            path, mmap_mode="r" if memory_map else None, allow_pickle=False
        )
    return array


@contextmanager
def readable_header() -> Iterator[None]:
    """A context that turns errors from a malformed header into `ValueError`."""
    try:
        yield
    except _HEADER_ERRORS as error:
        raise ValueError(f"its header is malformed: {type(error).__name__}") from error


class _Pieces:
    """A file object that numpy does not write through C: it receives pieces, and Python's errors are raised."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def save_array(path: str | Path, array: npt.ArrayLike) -> None:
    """Write an array as a `.npy` file.

    Raises:
        OSError: it can't be written completely, with the system's errno.
    """
    with Path(path).open("wb") as file:
        np.save(_Pieces(file), np.asanyarray(array), allow_pickle=False)


def allocate(file: int, offset: int, num_bytes: int) -> None:
    """Reserve disk space for a part of an open file before it is memory-mapped. New bytes read as zeros.

    A file that was only extended has no blocks yet. If the disk is full, writing to the map then kills
    the process (SIGBUS) without a message.

    Args:
        file: the descriptor.
        offset: where the part starts.
        num_bytes: its length.

    Raises:
        OSError: the disk has no room.
    """
    try:
        os.posix_fallocate(file, offset, num_bytes)
        return
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    zeros = bytes(min(num_bytes, 1 << 20))
    while num_bytes > 0:
        num_written = os.pwrite(file, zeros[:num_bytes], offset)
        offset, num_bytes = offset + num_written, num_bytes - num_written
