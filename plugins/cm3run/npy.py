"""Read untrusted `.npy` files: any defect is a `ValueError`. Write `.npy` files completely, or raise.

numpy parses headers with Python's tokenizer and parser, which raise many types of errors. It writes arrays through C's
buffers, and does not check that the last bytes reached the disk.
"""

from __future__ import annotations

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
