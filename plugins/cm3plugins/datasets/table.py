"""Data set `table`: a CSV, TSV, JSON or Parquet file of records and pictures, with columns mapped to fields.

It reads tables unchanged: the `metadata.csv` or `metadata.jsonl` of Hugging Face's `imagefolder`, its
Parquet files with embedded pictures, or any table of paths and texts. If cells are not separated as the file's name
implies, as in files that spreadsheets save in many countries, one error is raised at the header instead of one for
every row.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cm3core.errors import DataError, MissingPackageError, RecipeError
from cm3core.interfaces.dataset import Provenance, SkippedRecord
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.datasets.annotations import check_size, checked_text, name_in, text_in
from cm3plugins.datasets.file_source import (
    FileSource,
    FileSourceConfig,
    FoundRecord,
    Picture,
    boundary,
    existing,
    found_or_skipped,
    json_lines,
    read_utf8,
    type_name,
)
from cm3plugins.datasets.hub_data import TABLES, local
from cm3plugins.datasets.jsonl import PicturesOfLines
from cm3plugins.datasets.parquet import ParquetPicture, parquet_columns, parquet_rows
from cm3plugins.datasets.pictures import PictureIndex, index_path
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    import numpy as np

    from cm3core.interfaces.task import Record

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_SUFFIXES = {",": ".csv", "\t": ".tsv"}


def check_separator(
    place: str, header: Sequence[str], wanted: Collection[str], separator: str
) -> None:
    """Reject a header that was read as one cell, but has the required columns with another separator.

    Args:
        place: place of the header, for the error.
        header: its cells.
        wanted: required columns.
        separator: assumed separator.

    Raises:
        DataError: cells are separated otherwise.
    """
    if len(header) != 1 or set(wanted) <= set(header):
        return
    for other, name in _NAMES.items():
        cells = {cell.strip() for cell in header[0].split(other)}
        if other != separator and set(wanted) <= cells:
            rename = f"name it {_SUFFIXES[other]}, or " if other in _SUFFIXES else ""
            raise DataError(
                place,
                f"its columns are separated by {name}, not {_NAMES[separator]}",
                f"{rename}save it with {_NAMES[separator]}",
            )


#: Names of Hugging Face's tables of a folder, in search order.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_PROVENANCE = ("licence", "source", "attribution")
_WITH_HEADER = (".csv", ".tsv", ".parquet")


@dataclass(kw_only=True)
class TableSourceConfig(FileSourceConfig):
    """A table of records with pictures, with columns mapped to the fields of a task.

    Args:
        path: a .csv or .tsv file with a header, a JSON file with a list of objects or one object per line, or a
            .parquet file (extra `parquet`); or a folder with such a file called metadata, or with
            .parquet files.
        columns: field -> column. A text may be a list of alternatives, from which training draws one.
        pictures: fields that are pictures: their columns hold paths relative to the file or, in Parquet, the
            pictures themselves.
        constants: field -> a text that is the same in every record.
        id_column: column of the records' ids; null: use their numbers.
        provenance: "licence", "source" or "attribution" -> the column that states it.
        allow_outside: read pictures outside the file's folder, through absolute paths, `../` or links; false:
            skip their records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its table and pictures"),
        "columns": TEXT,
        "constants": TEXT,
        "id_column": TEXT,
        "pictures": TEXT,
        "provenance": TEXT,
    }

    reads: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet")

    path: str
    columns: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=lambda: ["image"])
    constants: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    id_column: str | None = None
    allow_outside: bool = False

    def check(self) -> None:
        """Raise `RecipeError` for duplicate or missing fields."""
        super().check()
        if not self.columns:
            there = _columns_at(self.path)
            raise RecipeError(
                "dataset.columns",
                "is empty",
                "map fields to columns, as in dataset.columns='{image: COLUMN, caption: COLUMN}'"
                + (f"; the table has {', '.join(there)}" if there else ""),
            )
        for name in self.pictures:
            if name not in self.columns:
                raise RecipeError(
                    "dataset.pictures",
                    f"lists the field {name!r}, which has no column",
                    f"use some of {', '.join(self.columns)}",
                )
        if unknown := set(self.provenance) - set(_PROVENANCE):
            raise RecipeError(
                f"dataset.provenance.{min(unknown)}",
                "is not a kind of provenance",
                f"use some of {', '.join(_PROVENANCE)}",
            )
        for name in self.constants:
            if name in self.columns:
                raise RecipeError(
                    f"dataset.constants.{name}", "is also a column", "keep one of the two"
                )

    def record_fields(self) -> tuple[str, ...]:
        """Columns and constants."""
        return (*self.columns, *self.constants)

    def structures(self) -> list[str]:
        return [self.constants["feature"]] if "feature" in self.constants else []

    def build(self) -> TableSource:
        """Scan the file; new and changed pictures are read once (not decoded).

        Raises:
            RecipeError: a value is invalid.
            DataError: there is no such file, or it is not a table.
        """
        self.check()
        with PictureIndex.open(index_path(self.cache_dir)) as index:
            return TableSource(self, self.scan(index))

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records in the order of the file."""
        files = _files(self.path)
        folder = files[0].parent
        pictures = PicturesOfLines(folder, boundary(folder, self.allow_outside), index)

        def find(row: Row | DataError) -> FoundRecord:
            if isinstance(row, DataError):
                raise row
            return self._found(row, pictures)

        first: dict[str, str] = {}
        wanted = [*self.columns.values(), *self.provenance.values()]
        wanted += [] if self.id_column is None else [self.id_column]
        for path in files:
            prefix = f"{path.stem}-" if len(files) > 1 else ""
            self._check_header(path)
            yield from grouped(found_or_skipped(rows(path, wanted, index, prefix), find), first)

    def _check_header(self, path: Path) -> None:
        """Reject a CSV or Parquet file that lacks a column, instead of reporting each of its rows."""
        if path.suffix.lower() not in _WITH_HEADER or not (there := columns_of(path)):
            return  # JSON has no header; other errors are raised when reading rows
        delimiter = "," if path.suffix.lower() == ".csv" else "\t"
        check_separator(f"{path}, line 1", there, list(self.columns.values()), delimiter)
        for name, column in self.columns.items():
            if column not in there:
                raise DataError(
                    str(path),
                    f"has no column {column!r}, needed for the field {name!r}",
                    f"add it, or map another one: its columns are {', '.join(there)}",
                )

    def _found(self, row: Row, pictures: PicturesOfLines) -> FoundRecord:
        place, values = row.place, row.values
        parts: list[Picture | tuple[str, ...]] = []
        for name, column in self.columns.items():
            if column in values and values[column] is None:
                raise DataError(
                    place,
                    f"its column {column!r}, needed for the field {name!r}, is empty",
                    "fill it in, or remove the record",
                )
            if column not in values:
                raise DataError(
                    place,
                    f"has no column {column!r}, needed for the field {name!r}",
                    f"add it, or map another one: its columns are {', '.join(map(str, values))}",
                )
            parts.append(
                picture_of(place, values[column], name, pictures)
                if name in self.pictures
                else _texts(place, column, values[column])
            )
        return FoundRecord(
            row.number if self.id_column is None else name_in(place, values, self.id_column),
            place,
            tuple(parts),
            Provenance(
                **{
                    key: text_in(place, values, column)
                    for key, column in self.provenance.items()
                    if values.get(column) not in (None, "")
                }
            ),
            names=tuple(self.columns),
        )


class TableSource(FileSource):
    """The records of a table; documents are the fields in order."""

    def __init__(
        self, config: TableSourceConfig, records: Iterator[FoundRecord | SkippedRecord]
    ) -> None:
        super().__init__(config, records)
        self._constants = dict(config.constants)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Return the fields of a record, and the constants."""
        return {**self._constants, **super().record(index, rng)}


def grouped(
    records: Iterator[FoundRecord | SkippedRecord], first: dict[str, str]
) -> Iterator[FoundRecord | SkippedRecord]:
    """Yield the records, grouping those that share a picture under the first one's id. Otherwise a picture in
    several rows could be trained on in one split and held out in another.

    Args:
        records: records of a file.
        first: a picture's key -> its group, from earlier files; updated.
    """
    for record in records:
        if isinstance(record, FoundRecord):
            keys = [part.key for part in record.parts if not isinstance(part, tuple)]
            group = next((first[key] for key in keys if key in first), record.id)
            for key in keys:
                first.setdefault(key, group)
            record = replace(record, group=group)
        yield record


def picture_of(place: str, value: object, name: str, pictures: PicturesOfLines) -> Picture:
    """Return the picture of a cell: a path, or one embedded in Parquet; `name`: its name in messages.

    Raises:
        DataError: there is no usable picture.
    """
    if isinstance(value, DataError):
        raise value
    return value if isinstance(value, ParquetPicture) else pictures.picture(place, value, name)


def _texts(place: str, column: str, value: object) -> tuple[str, ...]:
    """Return a column's text, or its alternatives."""
    if isinstance(value, float) and math.isnan(value):  # value of empty cells in columns of numbers
        value = ""
    values = value if isinstance(value, list) else [value]
    texts = tuple(str(one).strip() for one in values if isinstance(one, (str, int, float)))
    if len(texts) < len(values) or not texts or not all(texts):
        what = "empty" if value in ("", []) or "" in texts else type_name(value)
        raise DataError(
            place, f"its column {column!r} is {what}, not a text", "use a text, or a list of texts"
        )
    return tuple(checked_text(place, column, text) for text in texts)


class Row(NamedTuple):
    """A row of a table: its number in the file as text, its name in messages, column -> value."""

    number: str
    place: str
    values: dict[str, Any]


def _files(path: str) -> list[Path]:
    """Return the file of a table, or the files of its folder."""
    folder = local(path, TABLES)
    if not folder.is_dir():
        return [existing(path, folder=False)]
    for name in METADATA:
        if (folder / name).is_file():
            return [folder / name]
    found = sorted(file for file in folder.glob("*.parquet") if file.is_file())
    if not found:
        raise DataError(
            f"dataset.path {folder}",
            f"is a folder without {', '.join(METADATA)} or other .parquet files",
            "use the path of the table itself",
        )
    return found


def columns_of(path: Path) -> list[str]:
    """Return the columns of a table, from CSV's header, Parquet's schema, or the keys of JSON's first record.

    Raises:
        MissingPackageError: pyarrow is not installed.
        DataError: the file can't be read.
    """
    check_size(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        return parquet_columns(path)
    if kind not in _WITH_HEADER:
        first = next((row for row in _json_rows(path) if isinstance(row, Row)), None)
        return [] if first is None else [str(key) for key in first.values]
    content = io.StringIO(read_utf8(path, str(path)), newline="")
    try:
        return next(csv.reader(content, delimiter="," if kind == ".csv" else "\t", strict=True), [])
    except csv.Error:
        return []  # raised when reading rows


def _columns_at(path: str) -> list[str]:
    """Return the columns of a table's first file, for a message about the recipe; none if it can't be read."""
    try:
        return columns_of(_files(path)[0])
    except (DataError, MissingPackageError, OSError):
        return []  # the message is about another error


def rows(
    path: Path, columns: list[str], index: PictureIndex, prefix: str = ""
) -> Iterator[Row | DataError]:
    """Yield the rows of a file, or a row's error; from Parquet only the given columns.

    Args:
        path: .csv, .tsv, .parquet, or JSON with any suffix.
        columns: required columns.
        index: index of pictures in Parquet files.
        prefix: prefix of the rows' numbers.
    """
    check_size(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        for number, values in parquet_rows(path, columns, index):
            yield Row(f"{prefix}{number}", f"{path}, row {number}", values)
    elif kind in (".csv", ".tsv"):
        yield from _csv_rows(path, columns, "," if kind == ".csv" else "\t")
    else:
        yield from _json_rows(path)


def _csv_rows(path: Path, wanted: list[str], delimiter: str) -> Iterator[Row | DataError]:
    content = io.StringIO(read_utf8(path, str(path)), newline="")
    reader = csv.DictReader(content, delimiter=delimiter, strict=True)
    try:
        header = list(reader.fieldnames or ())
        check_separator(f"{path}, line 1", header, wanted, delimiter)
        if twice := [name for name in wanted if header.count(name) > 1]:
            raise DataError(
                f"{path}, line 1", f"has two columns {twice[0]!r}", "give each column a unique name"
            )
        for row in reader:
            number = str(reader.line_num)
            place = f"{path}, line {number}"
            if None in row:  # cells without a column: a text was split at its comma
                yield DataError(
                    place,
                    f"has {len(header) + len(row[None])} fields, but the header has {len(header)}",
                    f"quote texts that contain {'commas' if delimiter == ',' else 'tabs'}",
                )
            else:
                yield Row(number, place, row)
    except csv.Error as error:
        yield DataError(f"{path}, line {reader.line_num}", f"is not CSV ({error})", "correct it")


def _json_rows(path: Path) -> Iterator[Row | DataError]:
    content = read_utf8(path, str(path))
    if not content.lstrip().startswith("["):
        for number, line in enumerate(json_lines(str(path), content)):
            if number == 0 and isinstance(line, DataError):
                _check_no_object(path, content)
            if isinstance(line, DataError):
                yield line
            else:
                place, values = line
                yield Row(place.rpartition(":")[2], place, values)
        return
    for number, row in enumerate(parse_json(content, str(path))):
        place = f"{path}, record {number}"
        yield (
            Row(str(number), place, row)
            if isinstance(row, dict)
            else DataError(place, f"is {type_name(row)}, not an object", "write {...}")
        )


def _check_no_object(path: Path, content: str) -> None:
    """Raise `DataError` if the whole file is one object, whose every line would be a bad record."""
    try:
        parse_json(content, str(path))
    except DataError:
        return
    raise DataError(
        str(path),
        "is a single object, not a list of records",
        "write a list of records, [{...}, ...], or one record per line",
    )
