"""Parquet files of records, read with pyarrow (extra `parquet`): texts, and pictures as files or embedded.

A picture's column holds paths, bytes, or the struct of `bytes` and `path` that Hugging Face's `Image`
feature writes. Bytes are hashed once, and read at random later, one row group at a time, since Parquet
compresses row groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cm3core.errors import DataError, MissingPackageError
from cm3core.files import check_regular
from cm3plugins.datasets.pictures import NEXT_STEP, PictureIndex, facts_of

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: Number of rows read at a time.
_BATCH = 64
#: Size limit of row groups with pictures; larger ones would not fit in memory.
MAX_GROUP_BYTES = 2 << 30


@dataclass(frozen=True)
class ParquetPicture:
    """A picture in a Parquet file: `row` of the column in the row group.

    Args:
        key: SHA-256 of its bytes, hexadecimal.
        width, height: pixels, upright.
        place: its name in messages.
        path: the file.
        column, group, row: its position.
        index_path: index that records it if it can't be decoded.
    """

    key: str
    width: int
    height: int
    place: str
    path: Path
    column: str
    group: int
    row: int
    index_path: Path = field(compare=False, repr=False)

    def load(self) -> PixelArray:
        """Return RGB pixels uint8 [height, width, 3].

        Raises:
            DataError: the file is gone or has changed, or the picture can't be decoded; in the last case it is
                skipped from the next start on.
        """
        from cm3core.images import open_image

        check_regular(self.path, self.place)
        try:
            changed = self.path.stat().st_mtime_ns
        except OSError as error:
            raise DataError(
                self.place,
                f"can no longer be read: {error.strerror}",
                "put it back, or start again",
            ) from error
        cells = _column_of(self.path, changed, self.group, self.column)
        data = _bytes_of(cells[self.row].as_py()) if self.row < len(cells) else None
        if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != self.key:
            raise DataError(self.place, "has changed since the data set was opened", "start again")
        try:
            return open_image(data, self.place)
        except DataError as error:
            with PictureIndex.open(self.index_path) as index:
                index.mark_undecodable(self.key, error.cause)
            raise DataError(
                self.place, error.cause, f"{NEXT_STEP}; it is skipped from the next start on"
            ) from error


#: A picture cell: embedded, a path, its error, or None if it is empty.
PictureCell = ParquetPicture | str | DataError | None


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file.

    Raises:
        MissingPackageError: pyarrow is not installed.
        DataError: it is not a Parquet file, or can't be read.
    """
    return list(_open(path).schema_arrow.names)


def parquet_rows(
    path: Path, columns: list[str], index: PictureIndex
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of a Parquet file, with the given columns that it has, and `PictureCell`s in place of
    pictures.

    Raises:
        MissingPackageError: pyarrow is not installed.
        DataError: it is not a Parquet file, or can't be read.
    """
    arrow = _arrow(str(path))
    file = _open(path)
    names = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
    held = [name for name in _picture_columns(file) if name in names]
    facts = index.shard(path, _facts) if held else {}
    number = 0
    try:
        for group in range(file.num_row_groups):
            texts = [name for name in names if name not in held]
            rows = file.metadata.row_group(group).num_rows
            cells: Iterator[dict[str, Any]] = ({} for _ in range(rows))
            if texts:
                batches = file.iter_batches(_BATCH, row_groups=[group], columns=texts)
                cells = (row for batch in batches for row in batch.to_pylist())
            for row_number, row in enumerate(cells):
                for name in held:
                    place = f"{path}, row {number}, column {name!r}"
                    where = _Where(path, name, group, row_number)
                    row[name] = _cell(facts[name][number], place, where, index)
                yield number, {name: row.get(name) for name in names}
                number += 1
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(path, error) from error


class _Where(NamedTuple):
    """A cell of a file: its column, and its row in the row group."""

    path: Path
    column: str
    group: int
    row: int


def _cell(fact: Any, place: str, where: _Where, index: PictureIndex) -> PictureCell:
    if fact is None or isinstance(fact, str):
        return fact
    key, width, height, cause, step = fact
    if cause is not None:
        return DataError(place, cause, step)
    picture = ParquetPicture(key, width, height, place, *where, index.path)
    if (undecodable := index.cause_of(key)) is not None:
        return DataError(place, undecodable, NEXT_STEP)
    return picture


def _facts(path: Path) -> dict[str, list[Any]]:
    """Return, for each picture column and row, the result of `facts_of`, a path, or None for an empty cell."""
    from cm3core.images import check_file_bytes

    arrow, file = _arrow(str(path)), _open(path)
    found: dict[str, list[Any]] = {}
    for name in _picture_columns(file):
        facts = found[name] = []
        try:
            for group in range(file.num_row_groups):
                _check_group(path, file, group)
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[name]):
                    for cell in batch.column(0):
                        place = f"{path}, row {len(facts)}, column {name!r}"
                        data = _bytes_of(cell.as_py())
                        if not isinstance(data, bytes):
                            facts.append(data)
                            continue
                        try:
                            check_file_bytes(len(data), place)
                            facts.append(facts_of(data, place))
                        except DataError as error:
                            facts.append(("", 0, 0, error.cause, error.next_step))
        except DataError:
            raise
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise _no_parquet(path, error) from error
    return found


def _bytes_of(value: Any) -> bytes | str | None:
    """Return the bytes of a picture's cell, or its path."""
    if isinstance(value, dict):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    return value if isinstance(value, (bytes, str)) else None


def _picture_columns(file: Any) -> list[str]:
    """Return the columns of bytes, or of structs with bytes."""
    types = _arrow("").types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            names = [kind.field(place).name for place in range(kind.num_fields)]
            return "bytes" in names and holds_bytes(kind.field("bytes").type)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    return [one.name for one in file.schema_arrow if holds_bytes(one.type)]


def _check_group(path: Path, file: Any, group: int) -> None:
    """Reject a row group that would not fit in memory."""
    size = file.metadata.row_group(group).total_byte_size
    if size > MAX_GROUP_BYTES:
        raise DataError(
            str(path),
            f"its row group {group} has {size:,} bytes, above the limit of {MAX_GROUP_BYTES:,}",
            "write it with smaller row groups (row_group_size=100)",
        )


@lru_cache(maxsize=4)  # the pictures of a record are often in two or three columns
def _column_of(path: Path, changed: int, group: int, column: str) -> Any:
    """Return a column of a row group; `changed`: the file's time, so that a changed file is read again."""
    arrow, file = _arrow(str(path)), _open(path)
    _check_group(path, file, group)
    try:
        return file.read_row_group(group, columns=[column]).column(0)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(path, error) from error


def _open(path: Path) -> Any:
    arrow = _arrow(str(path))
    import pyarrow.parquet

    check_regular(path, str(path))
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _no_parquet(path, error) from error


def _arrow(place: str) -> Any:
    """Import pyarrow, with `lib`, `types` and its base exception `ArrowException`."""
    try:
        import pyarrow
        import pyarrow.types
    except ModuleNotFoundError as error:
        raise MissingPackageError.extra(place, "pyarrow", "parquet") from error
    return pyarrow


def _no_parquet(path: Path, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(str(path), f"can't be read as Parquet ({reason})", "replace the file")
