"""Data set `folder`: pictures in a folder, with a `.txt` for each, or one captions file.

    my/pictures/cat.jpg           my/pictures/cat.jpg
    my/pictures/cat.txt           my/pictures/dogs/rex.png
                                  my/pictures/captions.csv      image,text
                                                                cat.jpg,a cat asleep
                                                                dogs/rex.png,"Rex, a dog"

Subfolders are searched too. Several lines of a `.txt`, several rows for one picture, or a list of
texts are alternative captions: the first is the canonical one, and training draws one at random.
`docs/data.md` describes all formats of the captions file. Rows or files may state licences, see
`stated_licences`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.dataset import FOLDER, Provenance, SkippedRecord
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    FileSourceConfig,
    FoundRecord,
    boundary,
    captions_of,
    check_inside,
    existing,
    found_or_skipped,
    is_unicode,
    json_lines,
    read_utf8,
    skipped,
    type_name,
)
from cm3plugins.datasets.pictures import SUFFIXES, UNREAD_SUFFIXES, PictureIndex
from cm3plugins.datasets.stated_licences import LicenceFiles, stated
from cm3plugins.datasets.table import METADATA, check_separator
from cm3run.json_text import parse_json

CAPTION_FILES = ("captions.jsonl", "captions.json", "captions.csv", "captions.tsv")
ADD_CAPTIONS = (
    "write NAME.txt next to each NAME.png, or one captions.csv with the header image,text"
)
_COLUMNS = "dataset.columns='{image: COLUMN, caption: COLUMN}'"


@dataclass(kw_only=True)
class FolderSourceConfig(FileSourceConfig):
    """A folder of pictures and captions; ids are the pictures' paths relative to it.

    Args:
        path: the folder.
        allow_outside: read pictures and captions outside the folder that links in it point to; false:
            skip their records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its pictures"),
    }

    reads: ClassVar[tuple[str, ...]] = (FOLDER,)
    path: str
    allow_outside: bool = False

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield folders that are not searched, pictures in the order of their paths, then problems of the captions
        file."""
        folder = existing(self.path, folder=True)
        unsearched: list[DataError] = []
        names = sorted(_picture_names(folder, unsearched))
        if not any(name.lower().endswith(SUFFIXES) for name in names):
            if unsearched:
                raise unsearched[0]
            raise DataError(
                f"dataset.path {folder}",
                f"holds no picture ({', '.join(SUFFIXES)})",
                _other_reader(folder) or "correct dataset.path",
            )
        yield from map(skipped, unsearched)
        found = [name for name in CAPTION_FILES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(
                f"dataset.path {folder}", f"holds {' and '.join(found)}", "keep one captions file"
            )
        inside = boundary(folder, self.allow_outside)
        if found:
            check_inside(folder / found[0], inside, str(folder / found[0]))
            yield from _with_captions_file(folder, names, folder / found[0], index, inside)
        else:
            if not any((folder / name).with_suffix(".txt").exists() for name in names) and (
                reader := _other_reader(folder)
            ):
                raise DataError(
                    f"dataset.path {folder}",
                    "no picture in it has a caption in a .txt next to it",
                    reader,
                )
            yield from _with_texts_beside(folder, names, index, inside)


def _other_reader(folder: Path) -> str | None:
    """Return the next step for a folder without pictures or captions that holds the files of another data
    set."""
    from cm3run.bank.memory_bank import is_bank

    if (folder / "manifest.json").is_file() and any(folder.glob("*.tar")):
        return f"read its token shards: dataset=tokens dataset.path={folder}"
    if is_bank(folder):
        return "it is a memory bank; 'cm3 memory merge' can merge it with others"
    if any(folder.glob("*.tar")):
        return f"read its tars: dataset=webdataset dataset.path={folder}"
    # Hugging Face's imagefolder: also one subfolder per split
    metadata = sorted(folder.glob("metadata.*")) + sorted(folder.glob("*/metadata.*"))
    if found := next((path for path in metadata if path.name in METADATA), None):
        return (
            f"read {found}: dataset=table dataset.path={found} "
            "dataset.columns='{image: file_name, caption: COLUMN}'"
        )
    if found := next(iter(sorted(folder.glob("*.jsonl"))), None):
        return f"name the manifest: dataset=jsonl dataset.path={found}"
    if any(folder.glob("*.parquet")):
        return f"read its tables: dataset=table dataset.path={folder} {_COLUMNS}"
    if found := next(iter(sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")])), None):
        return f"read {found}: dataset=table dataset.path={found} {_COLUMNS}"
    return None


def _picture_names(folder: Path, unsearched: list[DataError]) -> Iterator[str]:
    """Yield paths of the pictures inside `folder`, with `/`.

    Hidden files and folders are skipped; unsupported picture types are included, to be reported.
    `unsearched` receives an error for each folder that is not searched: it can't be read, or is a link to a
    folder elsewhere (a link to a folder inside is skipped, since that is searched itself).
    """

    def unreadable(error: OSError) -> None:
        unsearched.append(
            DataError(
                _shown(error.filename),
                f"can't be read: {error.strerror}",
                "correct its permissions, or remove it",
            )
        )

    real = os.path.realpath(folder)
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(parent) / name
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(real):
                unsearched.append(
                    DataError(
                        _shown(path),
                        "is a link to a folder elsewhere, which is not searched for pictures",
                        "replace the link by a copy of the folder, or remove it",
                    )
                )
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES + UNREAD_SUFFIXES):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _shown(path: str | Path) -> str:
    """Return a path for messages, with invalid UTF-8 replaced."""
    return str(path).encode(errors="replace").decode()


def _record(
    folder: Path,
    name: str,
    captions: tuple[str, ...],
    index: PictureIndex,
    inside: Path | None,
    provenance: Provenance,
) -> FoundRecord:
    place = str(folder / name)
    if not is_unicode(name):
        raise DataError(_shown(place), "its file name is not valid UTF-8", "rename it")
    check_inside(folder / name, inside, place)
    return FoundRecord(name, place, (captions, index.picture(folder / name, place)), provenance)


def _check_kind(folder: Path, name: str) -> None:
    if name.lower().endswith(UNREAD_SUFFIXES):
        raise DataError(
            str(folder / name),
            f"pictures of type {Path(name).suffix} are not supported",
            "convert it to PNG or JPEG",
        )


def _with_texts_beside(
    folder: Path, names: list[str], index: PictureIndex, inside: Path | None
) -> Iterator[FoundRecord | SkippedRecord]:
    licences = LicenceFiles(folder, inside)

    def find(name: str) -> FoundRecord:
        _check_kind(folder, name)
        text_path = (folder / name).with_suffix(".txt")
        if not text_path.is_file():
            raise DataError(
                str(folder / name),
                f"has no caption: there is no {text_path.name} next to it",
                ADD_CAPTIONS,
            )
        check_inside(text_path, inside, str(text_path))
        text = read_utf8(text_path, str(text_path), MAX_TEXT_BYTES)
        captions = captions_of(text.splitlines(), str(text_path))
        return _record(folder, name, captions, index, inside, licences.of(name))

    return found_or_skipped(names, find)


def _with_captions_file(
    folder: Path, names: list[str], path: Path, index: PictureIndex, inside: Path | None
) -> Iterator[FoundRecord | SkippedRecord]:
    captions: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    licences, stating = LicenceFiles(folder, inside), dict[str, Provenance]()
    # pictures with only bad rows: the rows are reported, so the picture need not be
    reported: set[str] = set()
    for row in _rows(path):
        try:
            if isinstance(row, DataError):
                raise row
            place, values = row
            name = _image_name(place, values)
            places.setdefault(name, place)
            reported.add(name)
            texts, own = captions_of(values["text"], place), stated(place, values)
            if own != Provenance() and own != stating.setdefault(name, own):
                raise DataError(
                    place,
                    f"states another licence, source or attribution for {name!r} than an earlier row",
                    "state them once per picture",
                )
            captions.setdefault(name, []).extend(texts)
        except DataError as error:
            yield skipped(error)
    for name in names:
        try:
            _check_kind(folder, name)
            if captions.get(name):
                own = stating.get(name) or licences.of(name)
                yield _record(folder, name, tuple(captions[name]), index, inside, own)
            elif name not in reported:
                raise DataError(
                    str(folder / name),
                    f"has no caption: it is not in {path.name}",
                    f"add a row to {path.name}",
                )
        except DataError as error:
            yield skipped(error)
    for name in sorted(places.keys() - set(names)):
        yield SkippedRecord(
            places[name],
            f"there is no picture {name!r} in {folder}",
            "correct the path, or remove the row",
        )


def _image_name(place: str, values: dict[str, Any]) -> str:
    """Return the row's picture as a path inside the folder, without `./`."""
    for key in ("image", "text"):
        if key not in values:
            raise DataError(place, f"has no {key!r}", "give each row 'image' and 'text'")
    if not isinstance(values["image"], str):
        cause = f"'image' is {type_name(values['image'])}, not a path"
        raise DataError(place, cause, "write the picture's path inside the folder")
    return os.path.normpath(values["image"]).replace(os.sep, "/")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]] | DataError]:
    """Yield (place, values) of each row, or a `DataError` for a row that can't be read."""
    content = read_utf8(path, str(path))
    if path.suffix == ".json":
        yield from _json_rows(path, content)
    elif path.suffix == ".jsonl":
        yield from json_lines(str(path), content)
    else:
        yield from _table_rows(path, content)


def _json_rows(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]] | DataError]:
    """Yield rows of an object that maps pictures to captions, or of a list of objects."""
    values = parse_json(content, str(path), "correct the file")
    if isinstance(values, dict):
        for name, text in values.items():
            yield f"{path}: {name}", {"image": name, "text": text}
    elif isinstance(values, list):
        for number, item in enumerate(values):
            here = f"{path}[{number}]"
            if isinstance(item, dict):
                yield here, item
            else:
                yield DataError(
                    here,
                    f"is {type_name(item)}, not an object",
                    'write {"image": ..., "text": ...}',
                )
    else:
        raise DataError(
            str(path),
            f"is {type_name(values)}",
            'write {"picture.png": "caption", ...} or a list of objects',
        )


def _table_rows(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]] | DataError]:
    """Yield rows below a header with the columns `image` and `text`; ignores other columns except those of licences."""
    table = csv.reader(
        io.StringIO(content, newline=""),
        delimiter="\t" if path.suffix == ".tsv" else ",",
        strict=True,
    )
    try:
        header = [name.strip() for name in next(table, [])]
        check_separator(f"{path}:1", header, ("image", "text"), table.dialect.delimiter)
        if missing := [name for name in ("image", "text") if name not in header]:
            raise DataError(
                f"{path}:1",
                f"the header has no column {' and '.join(map(repr, missing))}",
                "start the file with a line such as "
                f"{'image<tab>text' if path.suffix == '.tsv' else 'image,text'}",
            )
        if twice := [name for name in ("image", "text") if header.count(name) > 1]:
            raise DataError(
                f"{path}:1", f"has two columns {twice[0]!r}", "give each column a unique name"
            )
        for row in table:
            here = f"{path}:{table.line_num}"
            if len(row) == len(header):
                cells = dict(zip(header, row, strict=True))
                # an empty cell in another column states nothing
                yield here, {k: v for k, v in cells.items() if k in ("image", "text") or v.strip()}
            elif row:
                cause = f"has {len(row)} fields, but the header has {len(header)}"
                yield DataError(here, cause, "quote captions that contain commas")
    except csv.Error as error:
        raise DataError(
            f"{path}:{table.line_num}", f"can't be read: {error}", "correct the quotes"
        ) from error
