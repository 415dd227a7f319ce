"""Read `.npy` files that may come from anyone: anything wrong with one is a `ValueError`. Write them whole, or
say why not.

numpy parses their headers with Python's own tokenizer and parser, whose errors are of many types. It writes
arrays to a file through C's buffers, and does not look whether their last bytes reached the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

#: What numpy raises for a malformed header, besides `ValueError`.
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
        ValueError: it is not a whole `.npy` file, or one of Python objects.
    """
    with readable_header():
        array: npt.NDArray[Any] = np.load(
            path, mmap_mode="r" if memory_map else None, allow_pickle=False
        )
    return array


@contextmanager
def readable_header() -> Iterator[None]:
    """Context that turns what a malformed header raises into `ValueError`."""
    try:
        yield
    except _HEADER_ERRORS as error:
        raise ValueError(f"its header is malformed: {type(error).__name__}") from error


class _Pieces:
    """A file that numpy does not take for one of C: it hands over pieces, and Python's errors count."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def save_array(path: str | Path, array: npt.ArrayLike) -> None:
    """Write an array as a `.npy` file.

    Raises:
        OSError: it can't be written whole, with the system's number of why.
    """
    with Path(path).open("wb") as file:
        np.save(_Pieces(file), np.asanyarray(array), allow_pickle=False)
