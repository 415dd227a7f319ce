"""The tar of a shard: deterministic bytes, and where each document is in them.

Members are in the order of the documents: `KEY.json`, then `KEY.npy` where it has pictures. Plain USTAR
headers, no times and no owners: the same documents give the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cm3core.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
#: Where USTAR has a member's name, its size in octal digits, and its type.
_NAME, _SIZE, _TYPE = slice(0, 100), slice(124, 135), 156
_REGULAR = ord("0")


class Entry(NamedTuple):
    """Where a document is in its shard: start and length of its JSON, and of its codes (length 0: it has no
    picture), in bytes."""

    text_start: int
    text_size: int
    codes_start: int
    codes_size: int


def write_tar(path: Path, documents: Iterable[tuple[str, bytes, bytes | None]]) -> int:
    """Write documents as (key, JSON, codes or None) and return their number."""
    number = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, text, codes in documents:
            _add(tar, f"{key}.json", text)
            if codes is not None:
                _add(tar, f"{key}.npy", codes)
            number += 1
    return number


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def entries_of(content: bytes | memoryview, place: str) -> list[Entry]:
    """Return where each document of a shard is.

    Args:
        content: the whole tar.
        place: its name in messages.

    Raises:
        DataError: it is not a tar that `write_tar` wrote, or ends early.
    """
    found: list[Entry] = []
    key, start, total = b"", 0, len(content)
    text: tuple[int, int] | None = None
    while start + _BLOCK <= total:
        header = bytes(content[start : start + _BLOCK])
        name = header[_NAME].rstrip(b"\0")
        if not name:
            break
        stem, _, suffix = name.rpartition(b".")
        try:
            size = int(header[_SIZE], 8)
        except ValueError:
            raise _strange(place, f"has no tar header at byte {start}") from None
        begin = start + _BLOCK
        if size < 0 or begin + size > total or header[_TYPE] != _REGULAR:
            raise _strange(place, f"ends within its member {name.decode(errors='replace')}")
        if suffix == b"json":
            if text is not None:
                found.append(Entry(*text, 0, 0))
            key, text = stem, (begin, size)
        elif suffix == b"npy" and text is not None and stem == key:
            found.append(Entry(*text, begin, size))
            text = None
        else:
            cause = f"holds {name.decode(errors='replace')}, which is no part of a document"
            raise _strange(place, cause)
        start = begin + -(-size // _BLOCK) * _BLOCK
    else:
        raise _strange(place, "lacks the end marker of a tar")
    if text is not None:
        found.append(Entry(*text, 0, 0))
    return found


def _strange(place: str, cause: str) -> DataError:
    return DataError(place, cause, "copy the shard again from where it came, or encode it again")
