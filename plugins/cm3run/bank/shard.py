"""A shard: some documents of a bank in a folder of four files, written once and never changed. Its
name is a hash of its content.

    vectors.npy       float32 [m, E]
    codes.npy         uint16 (int32 for codebooks that need it) [p, c], one row per picture
    documents.jsonl   {"id": ..., "segments": ["a text", 0, ...], "keys": [...]}, where numbers are rows of codes.npy;
                      with "licence", "source", "attribution" if the data set states them
    table.npy         position of each document's line, a hash of its id, and its parts; `TABLE_ROW` [m]

`VectorRows` presents the vectors of several shards as one array.

Legend: m documents, p pictures, c codes of a picture, E numbers of a vector, M rows of all shards, n requested rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cm3core.arguments import CountOrZero, checked
from cm3core.document import Codes, Document, IntArray, Text
from cm3core.errors import DataError, FileError
from cm3core.files import make_folder, not_written, sha256_file, sync_directory
from cm3core.interfaces.dataset import Provenance, StatedProvenance, provenance_in
from cm3core.outputs import record_folder, remove_own, set_aside
from cm3run.bank.manifest import (
    CODES,
    DOCUMENTS,
    FILES,
    TABLE,
    VECTORS,
    ImageTokenizerMaker,
    Manifest,
    ShardInfo,
    StoredFile,
    refused,
)
from cm3run.json_text import StoredName, parse_json
from cm3run.mapped import map_array, map_bytes
from cm3run.npy import save_array

FloatArray = npt.NDArray[np.float32]


class VectorRows:
    """Rows 0..M-1 of several arrays, without copying.

    Args:
        parts: float32 [m, E] each, in order; any may be empty.
        dimension: E, required if there are no parts.

    Raises:
        DataError: a part has another shape or type, or there are neither parts nor a dimension.
    """

    @checked(DataError)
    def __init__(self, parts: Sequence[FloatArray], dimension: int | None = None) -> None:
        if dimension is None:
            if len(parts) == 0:
                raise DataError("parts", "are empty", "give the dimension")
            dimension = parts[0].shape[-1]
        for place, part in enumerate(parts):
            if part.dtype != np.float32 or part.ndim != 2 or part.shape[1] != dimension:
                raise DataError(
                    f"parts[{place}]",
                    f"is {part.dtype} {list(part.shape)}, not float32 [m, {dimension}]",
                    "give rows of one length",
                )
        self.parts: Sequence[FloatArray] = tuple(parts)
        self.dimension = dimension
        self._starts = list(accumulate((len(part) for part in parts), initial=0))

    @classmethod
    @checked(DataError)
    def of(cls, rows: FloatArray) -> VectorRows:
        """The rows of one array."""
        return cls([rows])

    @property
    def shape(self) -> tuple[int, int]:
        """(M, E)."""
        return self._starts[-1], self.dimension

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> FloatArray:
        """A copy of some rows.

        Args:
            indices: [n], 0..M-1, in any order, repetitions allowed.

        Returns:
            float32 [n, E].

        Raises:
            IndexError: an index is outside.
        """
        rows = np.asarray(indices, np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            wrong = rows[(rows < 0) | (rows >= len(self))][0]
            raise IndexError(f"row {wrong}: there are {len(self)}")
        taken_nE = np.empty((rows.size, self.dimension), np.float32)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owner):
            mine = owner == part
            taken_nE[mine] = self.parts[part][rows[mine] - self._starts[part]]
        return taken_nE

    def blocks(self, max_rows: int) -> Iterator[tuple[int, FloatArray]]:
        """All rows in order, at most `max_rows` at a time: (index of the first, view of them). A
        block lies within one part."""
        if max_rows < 1:
            raise ValueError(f"max_rows: is {max_rows}, not 1 or more")
        for start, part in zip(self._starts, self.parts, strict=False):  # one more start than parts
            for first in range(0, len(part), max_rows):
                yield start + first, part[first : first + max_rows]

    def row(self, index: int) -> FloatArray:
        """A view of one row, float32 [E]."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index}: there are {len(self)}")
        part = bisect_right(self._starts, index) - 1
        row: FloatArray = self.parts[part][index - self._starts[part]]
        return row


#: `parts` holds the bits `HAS_TEXT` and `HAS_IMAGE`.
TABLE_ROW = np.dtype([("offset", "<i8"), ("length", "<i8"), ("id_hash", "<u8"), ("parts", "u1")])
HAS_TEXT, HAS_IMAGE = 1, 2
#: Folder of a bank's shards; suffix of a shard that is being written.
SHARDS = "shards"
WRITING = ".writing"
#: Most bytes of a document's line.
_MOST_BYTES = 1 << 24


class _Line(StatedProvenance):
    """A document's line."""

    id: StoredName
    segments: list[str | CountOrZero]
    keys: list[str]


_UNSTATED = Provenance()
#: Largest deviation of a unit vector's length from 1, due to rounding.
LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class BankDocument:
    """A document as stored in a bank: `Text` and `Codes` segments, its id and content keys, its unit
    vector float32 [E], and its provenance."""

    id: str
    document: Document
    content_keys: frozenset[str]
    vector: FloatArray
    provenance: Provenance = _UNSTATED


def id_hash(name: str) -> int:
    """The 64-bit hash used to look up ids."""
    return int.from_bytes(
        hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "little"
    )


def write_shard(
    bank: Path, documents: Iterable[BankDocument], manifest: Manifest
) -> ShardInfo | None:
    """Write a shard of a bank; None if there is no document. If the process ends early, no partial shard
    remains.

    Args:
        bank: the bank's folder.
        documents: m of them, held in memory until they are written.
        manifest: provides E, c and the codebook's size.

    Raises:
        FileError: the disk is full.
    """
    lines, rows, vectors, offset = [], [], [], 0
    codes: list[IntArray] = []
    for one in documents:
        line, parts = _line(one, codes)
        rows.append((offset, len(line), id_hash(one.id), parts))
        lines.append(line)
        vectors.append(one.vector)
        offset += len(line)
    if not lines:
        return None
    tokenizer = manifest.image_tokenizer
    num_codes = tokenizer.grid[0] * tokenizer.grid[1]
    arrays = {
        VECTORS: np.asarray(vectors, np.float32),
        TABLE: np.array(rows, TABLE_ROW),
        CODES: np.array(codes, code_type(tokenizer)).reshape(len(codes), num_codes),
    }
    make_folder(bank / SHARDS)
    temporary = bank / SHARDS / f".{uuid.uuid4().hex[:8]}{WRITING}"
    try:
        return _write_files(temporary, arrays, lines)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise not_written(bank, error) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _line(one: BankDocument, codes: list[IntArray]) -> tuple[bytes, int]:
    """A document's line of `documents.jsonl`, and its `parts` bits; codes of its pictures are appended to `codes`."""
    segments: list[str | int] = []
    for segment in one.document:
        if isinstance(segment, Text):
            segments.append(segment.text)
        else:
            assert isinstance(segment, Codes)
            segments.append(len(codes))
            codes.append(segment.codes)
    record = {"id": one.id, "segments": segments, "keys": sorted(one.content_keys)}
    if one.provenance != _UNSTATED:
        record |= one.provenance.stated()
    try:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise DataError(
            f"document {one.id!a}",
            f"holds half a character ({error.object[error.start]!a}), which is not Unicode",
            "correct its text, or leave it out",
        ) from error
    return line, sum({HAS_TEXT if isinstance(part, str) else HAS_IMAGE for part in segments})


def _write_files(
    temporary: Path, arrays: Mapping[str, npt.NDArray[Any]], lines: Sequence[bytes]
) -> ShardInfo:
    """Write a shard's files into a temporary folder beside its final place, and rename that."""
    temporary.mkdir()
    for name, array in arrays.items():
        save_array(temporary / name, array)
    (temporary / DOCUMENTS).write_bytes(b"".join(lines))
    info = ShardInfo(
        len(lines), len(arrays[CODES]), {name: _flushed(temporary / name) for name in FILES}
    )
    sync_directory(temporary)
    target = temporary.parent / info.name
    if target.exists() and all(
        _is_stored(target / name, file) for name, file in info.files.items()
    ):
        shutil.rmtree(temporary)  # left by a process that was killed before the manifest listed it
    else:
        if target.exists() and not remove_own(target):
            set_aside(target)
        record_folder(temporary, target)
        temporary.rename(target)
        sync_directory(target.parent)
    return info


def code_type(tokenizer: ImageTokenizerMaker) -> npt.DTypeLike:
    """Data type of the codes on disk."""
    return np.dtype("<u2") if tokenizer.codebook_size <= 1 << 16 else np.dtype("<i4")


def _flushed(path: Path) -> StoredFile:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return StoredFile(path.stat().st_size, sha256_file(path))


def _is_stored(path: Path, file: StoredFile) -> bool:
    return path.is_file() and sha256_file(path) == file.sha256


class Shard:
    """A shard on disk: memory-mapped files whose sizes and shapes were checked.

    Args:
        bank: the bank's folder.
        info: the manifest's entry.
        manifest: provides E, c and the codebook's size.

    Raises:
        DataError: a file is missing, truncated, or of another shape.
    """

    def __init__(self, bank: Path, info: ShardInfo, manifest: Manifest) -> None:
        self.folder, self.info, self._manifest = bank / SHARDS / info.name, info, manifest
        for name, file in info.files.items():
            try:
                size = (self.folder / name).stat().st_size
            except OSError as error:
                raise self._unreadable(name, error) from error
            if size != file.num_bytes:
                raise self.damaged(name, f"has {size} bytes, not {file.num_bytes}")
        self.vectors: FloatArray = self._array(
            VECTORS, (info.num_documents, manifest.dimension), np.dtype("<f4")
        )
        self.table: npt.NDArray[np.void] = self._array(TABLE, (info.num_documents,), TABLE_ROW)
        tokenizer = manifest.image_tokenizer
        # Opened now, because another process may delete the files; mapped data stays readable.
        self._codes: npt.NDArray[np.integer] = self._array(
            CODES, (info.num_pictures, tokenizer.grid[0] * tokenizer.grid[1]), code_type(tokenizer)
        )
        try:
            self._lines = map_bytes(self.folder / DOCUMENTS)
        except OSError as error:
            raise self._unreadable(DOCUMENTS, error) from error

    def __len__(self) -> int:
        return self.info.num_documents

    def damaged(self, name: str, cause: str) -> DataError:
        """The error for an unusable file."""
        return DataError(
            str(self.folder / name),
            cause,
            "copy the bank again from its source, or drop the damaged shards: "
            f"cm3 memory remove {shlex.quote(str(self.folder.parents[1]))} --damaged",
        )

    def _unreadable(self, name: str, error: OSError) -> DataError | FileError:
        """The error for a file that could not be opened or read. Only a missing file counts as damage:
        other refusals by the system (too many open files, no memory, no permission, a failing
        disk) say nothing about the bank."""
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
            return self.damaged(name, f"can't be read ({error.strerror})")
        return refused(self.folder / name, error)

    def _array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
        try:
            array = map_array(self.folder / name)
        except OSError as error:
            raise self._unreadable(name, error) from error
        except ValueError as error:
            raise self.damaged(name, f"is not an array ({error})") from error
        if array.shape != shape or array.dtype != dtype:
            raise self.damaged(
                name, f"is {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {list(shape)}"
            )
        return array

    def _record(self, row: int) -> tuple[str, list[str | int], list[str], Provenance]:
        """Id, segments, content keys and provenance of a document."""
        offset, length = int(self.table[row]["offset"]), int(self.table[row]["length"])
        try:
            if not 0 <= offset <= offset + length <= len(self._lines):
                raise ValueError(f"bytes {offset} to {offset + length} of {len(self._lines)}")
            line = self._lines[offset : offset + length].tobytes()
            values = parse_json(line, DOCUMENTS, form=_Line, most_bytes=_MOST_BYTES)
        except ValueError as error:
            cause = error.cause if isinstance(error, DataError) else error
            raise self.damaged(DOCUMENTS, f"document {row} can't be read ({cause})") from error
        return values["id"], values["segments"], values["keys"], provenance_in(values)

    def id(self, row: int) -> str:
        """A document's id."""
        return self._record(row)[0]

    def content_keys(self, row: int) -> frozenset[str]:
        """A document's content keys."""
        return frozenset(self._record(row)[2])

    def provenance(self, row: int) -> Provenance:
        """Licence and source of a document; unknown in banks of earlier versions and of data that states
        none."""
        return self._record(row)[3]

    def document(self, row: int) -> Document:
        """A document's segments."""
        return tuple(
            Text(part) if isinstance(part, str) else self._picture(part, row)
            for part in self._record(row)[1]
        )

    def _picture(self, picture: int, row: int) -> Codes:
        tokenizer = self._manifest.image_tokenizer
        if not 0 <= picture < self.info.num_pictures:
            raise self.damaged(
                DOCUMENTS,
                f"document {row} names picture {picture}, but there are {self.info.num_pictures}",
            )
        codes = self._codes[picture].astype(np.int32)
        if codes.min() < 0 or codes.max() >= tokenizer.codebook_size:
            raise self.damaged(
                CODES,
                f"picture {picture} has codes {codes.min()}..{codes.max()}, the codebook has "
                f"{tokenizer.codebook_size} entries",
            )
        return Codes(codes, tokenizer.grid)

    def documents(self, rows: Iterable[int]) -> Iterator[BankDocument]:
        """Some documents, as they were stored."""
        for row in rows:
            name, _, keys, provenance = self._record(row)
            vector = self.vectors[row]
            yield BankDocument(name, self.document(row), frozenset(keys), vector, provenance)

    def check_vectors(self, block_rows: int = 8192) -> None:
        """Raise `DataError` for the first vector that is not finite or does not have unit length. Reads all
        vectors."""
        for start in range(0, len(self), block_rows):
            lengths = np.linalg.norm(self.vectors[start : start + block_rows], axis=1)
            wrong = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))
            if wrong.size:
                raise self.damaged(
                    VECTORS,
                    f"the vector of document {start + wrong[0]} has length "
                    f"{lengths[wrong[0]]:g}, not 1",
                )

    def verify(self) -> None:
        """Raise `DataError` if any byte differs from what was written, or a vector is invalid.
        Reads everything."""
        for name, file in self.info.files.items():
            try:
                digest = sha256_file(self.folder / name)
            except OSError as error:
                raise self._unreadable(name, error) from error
            if digest != file.sha256:
                raise self.damaged(name, "does not match its recorded SHA-256")
        self.check_vectors()
        for row in range(len(self)):
            self.document(row)
