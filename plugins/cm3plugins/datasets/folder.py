"""Data set `folder`: pictures in a folder, with a `.txt` for each, or one captions file.

    my/pictures/cat.jpg           my/pictures/cat.jpg
    my/pictures/cat.txt           my/pictures/dogs/rex.png
                                  my/pictures/captions.csv      image,text
                                                                cat.jpg,a cat asleep
                                                                dogs/rex.png,"Rex, a dog"

Subfolders are searched too. With `names_as_captions`, a picture without a caption is named by its file and folder; with
`svg_size`, SVG files are drawn. Several lines of a `.txt`, several rows for one picture, or a list of
texts are alternative captions: the first is the canonical one, and training draws one at random.
`docs/data.md` describes all formats of the captions file. Rows or files may state licences, see
`stated_licences`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.dataset import CAPTIONED, FOLDER, Provenance, SkippedRecord
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

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3plugins.datasets.file_source import Picture

CAPTION_FILES = ("captions.jsonl", "captions.json", "captions.csv", "captions.tsv")
ADD_CAPTIONS = (
    "write NAME.txt next to each NAME.png, or one captions.csv with the header image,text"
)
_SVG = ".svg"
_DRAW_SVG = "set dataset.svg_size to the pixels per side to draw it at, such as 256"
_WORD = re.compile(r"[^\W\d_]+|\d+")
#: File names of cameras and phones: at most four capitals, then numbers, as in IMG_0001, DSCF0001, P1000233 (the rule DCF,
#: JEITA CP-3461: four characters, four digits) and PXL_20240131_120000.
_CAMERA = re.compile(r"[A-Z_]{0,4}[-_ ]?\d[-_ \d]{3,}")
_COLUMNS = "dataset.columns='{image: COLUMN, caption: COLUMN}'"


@dataclass(kw_only=True)
class FolderSourceConfig(FileSourceConfig):
    """A folder of pictures and captions; ids are the pictures' paths relative to it.

    Args:
        path: the folder.
        allow_outside: read pictures and captions outside the folder that links in it point to; false:
            skip their records.
        names_as_captions: caption a picture that has no written caption by the words of its file's and its folder's
            names, such as `folder red, places` for `places/64/folder-red.png`; false: skip it.
        svg_size: pixels per side at which SVG files are drawn, on white; null: skip them.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its pictures"),
    }

    reads: ClassVar[tuple[str, ...]] = (FOLDER,)
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"svg_size": (1, 2**12)}
    later_keys: ClassVar[tuple[str, ...]] = ("names_as_captions", "svg_size")
    path: str
    allow_outside: bool = False
    names_as_captions: bool = False
    svg_size: int | None = None

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield folders that are not searched, pictures in the order of their paths, then problems of the captions
        file."""
        folder = existing(self.path, folder=True)
        unsearched: list[DataError] = []
        names = sorted(_picture_names(folder, unsearched))
        read = SUFFIXES if self.svg_size is None else (*SUFFIXES, _SVG)
        if not any(name.lower().endswith(read) for name in names):
            if unsearched:
                raise unsearched[0]
            raise DataError(
                f"dataset.path {folder}",
                f"holds no picture ({', '.join(read)})",
                (_DRAW_SVG if any(name.lower().endswith(_SVG) for name in names) else None)
                or _other_reader(folder)
                or "correct dataset.path",
            )
        yield from map(skipped, unsearched)
        found = [name for name in CAPTION_FILES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(
                f"dataset.path {folder}", f"holds {' and '.join(found)}", "keep one captions file"
            )
        named = named_by_files(names) if self.names_as_captions else {}
        reading = _Reading(
            folder, index, boundary(folder, self.allow_outside), self.svg_size, named
        )
        if found:
            check_inside(folder / found[0], reading.inside, str(folder / found[0]))
            yield from _with_captions_file(reading, names, folder / found[0])
        else:
            if (
                not named
                and not any((folder / name).with_suffix(".txt").exists() for name in names)
                and (reader := _other_reader(folder))
            ):
                raise DataError(
                    f"dataset.path {folder}",
                    "no picture in it has a caption in a .txt next to it",
                    reader,
                )
            yield from _with_texts_beside(reading, names)


@dataclass(frozen=True)
class DrawnSvg:
    """The picture of an SVG file.

    Args:
        key: of its drawing, size and renderer.
        path: the file.
        svg: its plain elements, as `svg_folder` takes them over.
        size: pixels per side.
    """

    key: str
    path: Path
    svg: str
    size: int

    def load(self) -> PixelArray:
        """Return RGB pixels uint8 [size, size, 3].

        Raises:
            DataError: it can't be drawn.
        """
        from cm3plugins.svg import render_svg

        try:
            return render_svg(self.svg, self.size)
        except ValueError as error:
            raise DataError(
                str(self.path), f"can't be drawn ({error})", "correct it, or leave it out"
            ) from error


@dataclass(frozen=True)
class _Reading:
    """How pictures are read: see `FolderSourceConfig`; `named`: picture -> caption by its names, if those are used."""

    folder: Path
    index: PictureIndex
    inside: Path | None
    svg_size: int | None
    named: Mapping[str, str]

    def record(self, name: str, captions: tuple[str, ...], provenance: Provenance) -> FoundRecord:
        """The record of a picture."""
        place = str(self.folder / name)
        if not is_unicode(name):
            raise DataError(_shown(place), "its file name is not valid UTF-8", "rename it")
        check_inside(self.folder / name, self.inside, place)
        return FoundRecord(name, place, (captions, self._picture(name, place)), provenance)

    def caption_of(self, name: str) -> tuple[str, ...]:
        """The caption of a picture by its names."""
        return captions_of(self.named[name], str(self.folder / name))

    def _picture(self, name: str, place: str) -> Picture:
        path = self.folder / name
        if not name.lower().endswith(_SVG):
            return self.index.picture(path, place)
        from cm3plugins.datasets.svg_folder.reading import read_svg
        from cm3plugins.svg import renderer_version

        assert self.svg_size is not None
        svg = read_svg(path, one_paint=False).svg
        digest = hashlib.sha256(svg.encode()).hexdigest()[:32]
        key = f"svg-{renderer_version()}-{self.svg_size}px/{digest}"
        return DrawnSvg(key, path, svg, self.svg_size)

    def check_kind(self, name: str) -> None:
        """Raise `DataError` for a picture of a kind that is not read."""
        if name.lower().endswith(_SVG):
            if self.svg_size is None:
                raise DataError(str(self.folder / name), "is an SVG file", _DRAW_SVG)
        elif name.lower().endswith(UNREAD_SUFFIXES):
            raise DataError(
                str(self.folder / name),
                f"pictures of type {Path(name).suffix} are not supported",
                "convert it to PNG or JPEG",
            )


def named_by_files(names: Sequence[str]) -> dict[str, str]:
    """Captions of pictures by the words of their files' names and of the nearest folder whose name has some; a file whose
    name only counts is named by its folder.

    >>> list(named_by_files(["places/64/folder-red.png", "a/cats/001.png", "red_fox_01.jpg"]).values())
    ['folder red, places', 'cats', 'red fox']
    >>> list(named_by_files(["a/mr_tree/IMG_0001.jpg", "a/mr_tree/mr_tree_2.png", "a/mr_tree/mr_tree_3.png"]).values())
    ['mr tree', 'mr tree', 'mr tree']
    """
    from cm3plugins.datasets.svg_folder.names import names_of

    things = names_of([Path(name).stem for name in names])
    counted = Counter(
        (Path(name).parent, _uncounted(one)) for name, one in zip(names, things, strict=True)
    )
    found = {}
    for name, thing in zip(names, things, strict=True):
        folders = (_worded(folder) for folder in reversed(Path(name).parts[:-1]))
        place = next((words for words in folders if has_word(words)), "")
        only_counts = counted[Path(name).parent, _uncounted(thing)] > 1
        words = _worded(_uncounted(thing) if only_counts else thing)
        is_named = has_word(words) and not _CAMERA.fullmatch(Path(name).stem)
        own = words if is_named or not place else ""
        found[name] = ", ".join(dict.fromkeys(filter(None, (own, place))))
    return found


def tells_nothing(name: str, caption: str) -> bool:
    """Whether a caption by names has no word, since the picture's file only counts and so do its folders.

    >>> tells_nothing("IMG_0036.JPG", "img"), tells_nothing("fox/IMG_0036.JPG", "fox"), tells_nothing("7/36.png", "36")
    (True, False, True)
    """
    own = _CAMERA.fullmatch(Path(name).stem)
    return not has_word(caption) or bool(own and caption == _worded(Path(name).stem))


def _worded(text: str) -> str:
    """The words of a name, without a number at its end that only counts, such as the 01 of `fox_01`."""
    words = _WORD.findall(text.lower())
    while len(words) > 1 and words[-1].isdigit() and words[-1].startswith("0"):
        words.pop()
    return " ".join(words)


def _uncounted(thing: str) -> str:
    """The words of a name without the number at its end.

    >>> _uncounted("mr tree 36"), _uncounted("36")
    ('mr tree', '36')
    """
    return re.sub(r"\s+\d+$", "", thing)


def has_word(text: str) -> bool:
    """Whether a name has a word of two letters, so that it is more than a number or a size."""
    return any(sum(map(str.isalpha, word)) > 1 for word in text.split())


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


def _with_texts_beside(
    reading: _Reading, names: list[str]
) -> Iterator[FoundRecord | SkippedRecord]:
    folder, licences = reading.folder, LicenceFiles(reading.folder, reading.inside)

    def find(name: str) -> FoundRecord:
        reading.check_kind(name)
        text_path = (folder / name).with_suffix(".txt")
        if not text_path.is_file():
            if name not in reading.named:
                raise DataError(
                    str(folder / name),
                    f"has no caption: there is no {text_path.name} next to it",
                    ADD_CAPTIONS,
                )
            return reading.record(name, reading.caption_of(name), licences.of(name))
        check_inside(text_path, reading.inside, str(text_path))
        text = read_utf8(text_path, str(text_path), MAX_TEXT_BYTES)
        captions = captions_of(text.splitlines(), str(text_path))
        return reading.record(name, captions, licences.of(name))

    return found_or_skipped(names, find)


def _with_captions_file(
    reading: _Reading, names: list[str], path: Path
) -> Iterator[FoundRecord | SkippedRecord]:
    captions: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    folder = reading.folder
    licences, stating = LicenceFiles(folder, reading.inside), dict[str, Provenance]()
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
            reading.check_kind(name)
            if texts := tuple(captions.get(name, ())):
                own = stating.get(name) or licences.of(name)
                yield reading.record(name, texts, own)
            elif name not in reported:
                if name not in reading.named:
                    raise DataError(
                        str(folder / name),
                        f"has no caption: it is not in {path.name}",
                        f"add a row to {path.name}",
                    )
                yield reading.record(name, reading.caption_of(name), licences.of(name))
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
