"""Data set `table`: a CSV or JSON file of records and picture files, its columns mapped to fields.

Reads what others write as it is: the `metadata.csv` or `metadata.jsonl` of Hugging Face's `imagefolder`,
the `prompt.json` of ControlNet's pairs, a table of InstructPix2Pix or MagicBrush with its pictures.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3core.document import Image
from cm3core.errors import DataError, RecipeError
from cm3core.interfaces.dataset import SkippedRecord
from cm3plugins.datasets.file_source import (
    FileSource,
    FileSourceConfig,
    FoundRecord,
    boundary,
    existing,
    found_or_skipped,
    is_unicode,
    json_lines,
    read_utf8,
    type_name,
)
from cm3plugins.datasets.jsonl import PicturesOfLines
from cm3plugins.datasets.picture_index import PictureIndex, StoredPicture, index_path

if TYPE_CHECKING:
    import numpy as np

    from cm3core.interfaces.task import Record


@dataclass(kw_only=True)
class TableSourceConfig(FileSourceConfig):
    """A table of records with picture files, its columns mapped to the fields of a task.

    Args:
        path: a .csv file with a header, a JSON file with a list of objects, or one object a line.
        columns: field -> column. A text may be a list of alternatives, of which training draws one.
        pictures: fields that are pictures: their columns hold paths relative to the file.
        constants: field -> a text that is the same in every record.
        id_column: column of the records' ids; null: their numbers.
        allow_outside: read pictures outside the file's folder, by absolute paths, `../` or links; false:
            their records are skipped.
    """

    path: str
    columns: dict[str, str]
    pictures: list[str] = field(default_factory=lambda: ["image"])
    constants: dict[str, str] = field(default_factory=dict)
    id_column: str | None = None
    allow_outside: bool = False

    def check(self) -> None:
        """Raise `RecipeError` for fields that are given twice or not at all."""
        super().check()
        if not self.columns:
            raise RecipeError("dataset.columns", "is empty", "map fields: {caption: text}")
        for name in self.pictures:
            if name not in self.columns:
                raise RecipeError(
                    "dataset.pictures",
                    f"names the field {name!r}, which has no column",
                    f"name some of {', '.join(self.columns)}",
                )
        for name in self.constants:
            if name in self.columns:
                raise RecipeError(
                    f"dataset.constants.{name}", "is a column, too", "keep one of the two"
                )

    def build(self) -> TableSource:
        """Scan the file; new and changed pictures are read once (not decoded).

        Raises:
            RecipeError: a value can't be used.
            DataError: there is no such file, or it is no table.
        """
        self.check()
        with PictureIndex.open(index_path(self.cache_dir)) as index:
            return TableSource(self, self.scan(index))

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Records in the order of the file."""
        path = existing(self.path, folder=False)
        pictures = PicturesOfLines(path.parent, boundary(path.parent, self.allow_outside), index)

        def find(row: tuple[str, dict[str, Any]] | DataError) -> FoundRecord:
            if isinstance(row, DataError):
                raise row
            return self._found(*row, pictures)

        return found_or_skipped(_rows(path), find)

    def _found(self, place: str, row: dict[str, Any], pictures: PicturesOfLines) -> FoundRecord:
        parts: list[StoredPicture | tuple[str, ...]] = []
        for name, column in self.columns.items():
            if row.get(column) is None:
                raise DataError(
                    place,
                    f"has no column {column!r}, which is the field {name!r}",
                    f"give it, or map another: its columns are {', '.join(map(str, row))}",
                )
            value = row[column]
            parts.append(
                pictures.picture(place, value)
                if name in self.pictures
                else _texts(place, column, value)
            )
        number = place.rpartition(" ")[2]
        own: Any = number if self.id_column is None else row.get(self.id_column)
        if not isinstance(own, (str, int)) or not str(own) or not is_unicode(str(own)):
            raise DataError(
                place, f"its id in column {self.id_column!r} is {own!r}", "give each record an id"
            )
        return FoundRecord(str(own), place, tuple(parts))


class TableSource(FileSource):
    """The records of a table; their documents are the fields in order."""

    def __init__(
        self, config: TableSourceConfig, records: Iterator[FoundRecord | SkippedRecord]
    ) -> None:
        super().__init__(config, records)
        self._fields, self._constants = tuple(config.columns), dict(config.constants)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """The fields of a record, and the constants."""
        values = [
            segment if isinstance(segment, Image) else getattr(segment, "text", None)
            for segment in self.document(index, rng)
        ]
        return {**self._constants, **dict(zip(self._fields, values, strict=True))}


def _texts(place: str, column: str, value: object) -> tuple[str, ...]:
    """A column's text, or its alternatives."""
    values = value if isinstance(value, list) else [value]
    texts = tuple(str(one).strip() for one in values if isinstance(one, (str, int, float)))
    if len(texts) < len(values) or not texts or not all(texts):
        what = "empty" if value in ("", []) or "" in texts else type_name(value)
        raise DataError(
            place, f"its column {column!r} is {what}, not a text", "write a text, or some of them"
        )
    return texts


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]] | DataError]:
    """(place, row) of a file, or what is wrong with a row."""
    content = read_utf8(path, str(path))
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        try:
            for row in reader:
                yield (
                    f"{path}, line {reader.line_num}",
                    {str(key): value for key, value in row.items() if key is not None},
                )
        except csv.Error as error:
            yield DataError(f"{path}, line {reader.line_num}", f"is no CSV ({error})", "correct it")
        return
    if not content.lstrip().startswith("["):
        yield from json_lines(str(path), content)
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), f"is no JSON ({error})", "correct it") from error
    for number, row in enumerate(rows):
        place = f"{path}, record {number}"
        yield (
            (place, row)
            if isinstance(row, dict)
            else DataError(place, f"is {type_name(row)}, not an object", "write {...}")
        )
