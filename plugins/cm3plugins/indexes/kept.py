"""An index file next to its bank: built once, with a manifest of its inputs.

        <folder>/manifest.json    written last: fingerprint of the vectors and build settings; size,
        hash and time of the file
    <folder>/vectors.index    the engine's own file
    <folder>/vectors.index.lock   held while building

The manifest is removed before the file is written and rewritten after it, both atomically: a killed
build leaves no manifest, and the next one starts from scratch. Opening compares the file's size and
time with the manifest, and hashes the file only if the time differs (a copied bank), so a memory-mapped
index is not read in full.

The libraries' own writers don't check whether their last buffered bytes reach a full disk; `write_faiss` and
`check_whole` do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from cm3core.errors import DataError, FileError
from cm3core.files import (
    atomic_path,
    cache_folder,
    sha256_file,
    write_text,
)
from cm3run.built_once import built_once


def write_faiss(native: Any, path: Path) -> None:
    """Write a faiss index in faiss's format.

    Raises:
        OSError: the disk is full.
    """
    import faiss

    library: Any = faiss  # its type stubs are incomplete
    with path.open("wb") as file:
        library.write_index(native, library.PyCallbackIOWriter(file.write))


def check_whole(path: Path, num_bytes: int) -> None:
    """Raise `OSError` unless a newly written file has all its bytes."""
    if path.stat().st_size != num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


#: Kind and format version of a manifest; raise the version when a key changes its meaning.
KIND, FORMAT = "cm3leon vector index", 1
MANIFEST, FILE = "manifest.json", "vectors.index"

T = TypeVar("T")


@dataclass(frozen=True)
class IndexManifest:
    """The manifest next to an index's file.

    Args:
        fingerprint: fingerprint of the vectors.
        built: everything else that determines the index.
        measured: measurements from the build, used by searches.
        num_bytes, sha256, modified_ns: size, hash and time of the file.
        kind, format: `KIND`, `FORMAT`.
    """

    fingerprint: str
    built: dict[str, Any]
    measured: dict[str, Any]
    num_bytes: int
    sha256: str
    modified_ns: int
    kind: str = KIND
    format: int = FORMAT


class _NotUsable(Exception):
    """The index must be rebuilt; the message gives the reason, empty if there is no index."""


def kept_index(
    folder: Path,
    fingerprint: str,
    built: Mapping[str, Any],
    build: Callable[[Path], Mapping[str, Any]],
    load: Callable[[Path, Mapping[str, Any]], T],
) -> T:
    """Return the index in `folder`; builds it if none fits, see `built_once`.

    Args:
        folder: folder of this index alone.
        fingerprint: fingerprint of the vectors.
        built: everything else that determines the index, as JSON types.
        build: writes the index's file; returns measurements for `load`.
        load: (file, measurements) -> the index; raises `RuntimeError` or `ValueError` if
            the file is damaged.

    Raises:
        DataError: the folder holds something else, an index of a newer format, or a file newer than the
            manifest.
        FileError: the folder can't be written.
    """
    folder, reasons = cache_folder(root=folder), set[str]()

    def read(file: Path) -> T | None:
        try:
            return _load(file.parent, fingerprint, built, load)
        except _NotUsable as reason:
            reasons.add(str(reason))
            return None

    def build_file(file: Path) -> None:
        for reason in filter(None, reasons):
            tqdm.write(f"note: rebuilding the index {folder}: {reason}", file=sys.stderr)
        reasons.clear()
        (file.parent / MANIFEST).unlink(missing_ok=True)
        with atomic_path(file) as temporary:
            measured = dict(build(temporary))
        status = file.stat()
        _write(
            file.parent,
            IndexManifest(
                fingerprint,
                dict(built),
                measured,
                status.st_size,
                sha256_file(file),
                status.st_mtime_ns,
            ),
        )

    return built_once(folder / FILE, "building a search index", read, build_file)


def _load(
    folder: Path,
    fingerprint: str,
    built: Mapping[str, Any],
    load: Callable[[Path, Mapping[str, Any]], T],
) -> T:
    manifest = _manifest(folder)
    if manifest.fingerprint != fingerprint:
        raise _NotUsable("the bank has changed")
    if manifest.built != dict(built):
        raise _NotUsable("it was built with other sizes")
    _check_file(folder, manifest)
    try:
        return load(folder / FILE, manifest.measured)
    except (RuntimeError, ValueError, KeyError) as error:
        raise _NotUsable(
            f"its file can't be read ({(str(error).strip().splitlines() or [''])[-1][:200]})"
        ) from error


def _manifest(folder: Path) -> IndexManifest:
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _NotUsable("") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8
        raise _NotUsable("its manifest is damaged") from error
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise DataError(
            str(path),
            "is not the manifest of an index",
            f"move it away; a new index is then built in {folder}",
        )
    if values.get("format") != FORMAT:
        raise DataError(
            str(path),
            f"has the format {values.get('format')!r}, but this version reads {FORMAT}",
            f"use the cm3leon version that wrote it, or delete the folder {folder} to rebuild the "
            "index",
        )
    example = asdict(IndexManifest("", {}, {}, 0, "", 0))
    if values.keys() != example.keys() or any(
        type(values[name]) is not type(example[name]) for name in example
    ):
        raise _NotUsable("its manifest is damaged")
    return IndexManifest(**values)


def _check_file(folder: Path, manifest: IndexManifest) -> None:
    """Raise unless the file matches the manifest."""
    path = folder / FILE
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise _NotUsable("its file is missing") from error
    if status.st_size < manifest.num_bytes:
        raise _NotUsable(f"its file has {status.st_size:,} of {manifest.num_bytes:,} bytes")
    if (status.st_size, status.st_mtime_ns) == (manifest.num_bytes, manifest.modified_ns):
        return
    if status.st_size != manifest.num_bytes or sha256_file(path) != manifest.sha256:
        if status.st_mtime_ns > manifest.modified_ns:
            raise DataError(
                str(path),
                "is newer than its manifest, which describes another index",
                f"restore the original index, or delete the folder {folder} to rebuild it",
            )
        raise _NotUsable("its file is damaged")
    # a copy: hashed once, or each time if the folder is read-only
    with contextlib.suppress(FileError):
        _write(folder, replace(manifest, modified_ns=status.st_mtime_ns))


def _write(folder: Path, manifest: IndexManifest) -> None:
    write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
