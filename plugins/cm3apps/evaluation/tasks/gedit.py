"""The task `gedit`: pictures and instructions of GEdit-Bench (stepfun-ai/Step1X-Edit), from the files of its data set.

FOLDER    *.arrow or *.parquet, at any depth: rows of task_type, key, instruction, instruction_language ("en" or "cn"),
          Intersection_exist, input_image_raw (the picture to edit) and input_image (the same, scaled for the judge)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from cm3apps.evaluation.tasks.base import Sample, Task, known_keys
from cm3core.document import PixelArray
from cm3core.errors import DataError, MissingPackageError
from cm3core.images import open_image

LANGUAGES = ("en", "cn")
#: The columns of texts, and whether an instruction exists in both languages.
_TEXTS = ("task_type", "key", "instruction", "instruction_language")
_BOTH = "Intersection_exist"
TO_EDIT, JUDGED = "input_image_raw", "input_image"


@dataclass(frozen=True)
class Edit:
    """A row: its texts, and where its pictures are: the file, and the row's number there."""

    values: Mapping[str, Any]
    path: Path
    number: int

    @property
    def name(self) -> tuple[str, str, str]:
        """Kind of edit, language and key: the folders and the file that the scorer reads."""
        return (
            self.values["task_type"],
            self.values["instruction_language"],
            self.values["key"],
        )

    def picture(self, column: str) -> PixelArray:
        """Pixels of `TO_EDIT` or `JUDGED`.

        Raises:
            DataError: it can't be read.
        """
        place = f"{self.path}, row {self.number}, column {column!r}"
        try:
            data = _table(self.path).column(column)[self.number].as_py()["bytes"]
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(place, "holds no picture", "download the data set again") from error
        if not isinstance(data, bytes):
            raise DataError(place, "holds no picture", "download the data set again")
        return open_image(data, place)


def open_gedit(
    values: Mapping[str, Any], *, size: int | None, data: Path | None, model: Any, registry: Any
) -> Task:
    """The edits in one language, in the order of their kinds and keys."""
    keys = known_keys("gedit", values)
    if keys["language"] not in LANGUAGES:
        raise DataError(
            "protocol: task.language", f"is {keys['language']!r}", f"use {' or '.join(LANGUAGES)}"
        )
    samples = []
    for edit in edits_of(data):
        kind, language, key = edit.name
        if language == keys["language"]:
            load = partial(edit.picture, TO_EDIT)
            target = {"metadata": dict(edit.values)}
            samples.append(
                Sample(
                    f"{kind}/{key}",
                    edit.values["instruction"],
                    load,
                    f"edit:{key}",
                    target=target,
                )
            )
    if not samples:
        raise DataError(
            str(data), f"has no instructions in the language {keys['language']!r}", "complete it"
        )
    return Task("gedit", "edits", samples, {name: keys[name] for name in ("language", "judge")})


def edits_of(data: Path | None) -> list[Edit]:
    """The rows of all files, in the order of their names, each once.

    Raises:
        DataError: the folder has no files of the data set, or a row is damaged or there twice.
        MissingPackageError: pyarrow is not installed.
    """
    found = [] if data is None or not data.is_dir() else sorted(data.rglob("*.arrow"))
    if not found and data is not None and data.is_dir():
        found = sorted(data.rglob("*.parquet"))
    if not found:
        raise DataError(
            "this protocol" if data is None else str(data),
            "needs the files of GEdit-Bench",
            "download them (hf download stepfun-ai/GEdit-Bench --repo-type dataset --local-dir FOLDER) and "
            "give their folder (--data)",
        )
    edits: dict[tuple[str, str, str], Edit] = {}
    for path in found:
        for edit in _edits(path):
            if edit.name in edits:
                raise DataError(
                    f"{path}, row {edit.number}",
                    f"has the edit {'/'.join(edit.name)} again",
                    "give the files of one copy",
                )
            edits[edit.name] = edit
    return [edits[name] for name in sorted(edits)]


def _edits(path: Path) -> Iterator[Edit]:
    table = _table(path)
    absent = [name for name in (*_TEXTS, _BOTH, TO_EDIT, JUDGED) if name not in table.column_names]
    if absent:
        raise DataError(
            str(path), f"has no column {absent[0]!r}", "give the files of GEdit-Bench (--data)"
        )
    for number, row in enumerate(table.select([*_TEXTS, _BOTH]).to_pylist()):
        edit = Edit(row, path, number)
        whole = all(isinstance(row[name], str) and row[name].strip() for name in _TEXTS)
        # they name a folder and a file
        if not whole or any(part != PurePosixPath(part).name or part == ".." for part in edit.name):
            raise DataError(
                f"{path}, row {number}", "is not an edit", "download the data set again"
            )
        yield edit


@lru_cache(maxsize=16)
def _table(path: Path) -> Any:
    """The rows of a file; those of an Arrow file stay on the disk until they are read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingPackageError.extra(str(path), "pyarrow", "parquet") from error
    try:
        if path.suffix == ".parquet":
            return pyarrow.parquet.read_table(path)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            str(path), f"can't be read ({reason})", "download the data set again"
        ) from error
