"""Files of indexes, whole or with an error: the libraries' own writers don't look whether the last bytes, which
they keep in a buffer, reach a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any


def write_faiss(native: Any, path: Path) -> None:
    """Write an index of faiss in its format.

    Raises:
        OSError: the disk is full.
    """
    import faiss

    library: Any = faiss  # its type stubs are incomplete
    with path.open("wb") as file:
        library.write_index(native, library.PyCallbackIOWriter(file.write))


def check_whole(path: Path, num_bytes: int) -> None:
    """Raise `OSError` unless a file that was just written has all its bytes."""
    if path.stat().st_size != num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
