"""Compressed data files of a corpus: the same text gives the same bytes, and damage is reported."""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Mapping
from pathlib import Path

from cm3core.errors import DataError

MAX_UNPACKED_BYTES = 2**30
"""Limit of unpacked bytes, since ten kilobytes from anyone could unpack to this. The bundled files have at most 13 MB."""
_MAX_MEMORY = 2**28


def compress(text: str) -> bytes:
    """Compress with fixed xz settings, so that the same text gives the same bytes."""
    return lzma.compress(
        text.encode(), format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME
    )


def data_hash(files: Mapping[str, bytes]) -> str:
    """Return one hexadecimal SHA-256 over the contents of all compressed files (independent of the
    compressor)."""
    total = hashlib.sha256()
    for name in sorted(name for name in files if name.endswith(".xz")):
        total.update(name.encode() + b"\0" + hashlib.sha256(lzma.decompress(files[name])).digest())
    return total.hexdigest()


def read(path: Path, next_step: str = "reinstall cm3leon") -> bytes:
    """Return a data file's bytes.

    Raises:
        DataError: the file can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            str(path), f"the file can't be read ({error.strerror})", next_step
        ) from error


def unpack(path: Path, next_step: str = "reinstall cm3leon", content: bytes | None = None) -> str:
    """Return the text of a file written by `compress`.

    `content`: the file's bytes, if already read.

    Raises:
        DataError: the file can't be read or is damaged.
    """
    data = read(path, next_step) if content is None else content
    unpacker = lzma.LZMADecompressor(memlimit=_MAX_MEMORY)
    try:
        text = unpacker.decompress(data, MAX_UNPACKED_BYTES)
        if not unpacker.eof:
            raise lzma.LZMAError(
                "Compressed data ended before the end-of-stream marker was reached"
                if unpacker.needs_input
                else f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes"
            )
        return text.decode()
    except (lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"the file is damaged ({error})", next_step) from error


def unpack_lines(
    path: Path, next_step: str = "reinstall cm3leon", content: bytes | None = None
) -> list[str]:
    """Return the lines of a file written by `compress`; see `unpack`.

    Raises:
        DataError: the file can't be read or is damaged.
    """
    return unpack(path, next_step, content).removesuffix("\n").split("\n")
