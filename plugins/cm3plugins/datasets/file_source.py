"""Base of data sets made of a user's own files: turns scanned records into documents.

Bad records are skipped with a reason. A scan yields `FoundRecord`s and `SkippedRecord`s. This module
makes ids unique and assigns records to "train" or "valid" by a hash of the id (or of the group, or of
the picture) alone, so a record stays in its split whatever other records are added or removed. Only with
`split_by: look` a new record can move those that look like it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from cm3core.document import Document, Image, PixelArray, Segment, Text
from cm3core.errors import DataError, RecipeError, close_match
from cm3core.files import read_text
from cm3core.interfaces.dataset import (
    DocumentSource,
    DocumentSourceConfig,
    Original,
    Provenance,
    SkippedRecord,
)
from cm3core.interfaces.reach import READS, TEXT, WRITES, Outside, Reach
from cm3plugins.datasets.hub_data import local, source_of
from cm3plugins.datasets.pictures import PictureIndex, StoredPicture, index_path, suffix_of
from cm3run.json_text import parse_json
from cm3run.trust import is_download

if TYPE_CHECKING:
    import numpy as np

    from cm3core.interfaces.task import Record

T = TypeVar("T")

SPLITS = ("train", "valid", "all")
SPLIT_BY = ("id", "picture", "look")
#: Longer texts are not captions but other files.
MAX_TEXT_BYTES = 1 << 20


@dataclass(kw_only=True)
class FileSourceConfig(DocumentSourceConfig):
    """Keys shared by the configs.

    Args:
        split: "train", "valid" (a fraction of the records, chosen by a hash of their ids), or
            "all".
        valid: fraction of the records in "valid", 0..1.
        split_by: what is hashed to split: "id", "picture" (its bytes, so that copies of a picture are in
            the same split), or "look" (so that pictures that look alike are, too).
        cache_dir: folder for the index of pictures; None: ``CM3_CACHE`` or, if unset, the user's cache
            folder.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "split_by": TEXT,
        "cache_dir": Outside(WRITES, "the index of pictures"),
    }

    splits: ClassVar[tuple[str, ...]] = SPLITS

    valid: float = 0.05
    split_by: str = "id"
    cache_dir: str | None = None

    def check(self) -> None:
        """Raise `RecipeError` for an unknown split or a fraction outside 0..1."""
        super().check()
        if self.split not in SPLITS:
            raise RecipeError(
                "dataset.split",
                f"there is no split {self.split!r}; {close_match(self.split, SPLITS)}",
                f"use one of {', '.join(SPLITS)}",
            )
        if self.split_by not in SPLIT_BY:
            raise RecipeError(
                "dataset.split_by",
                f"is {self.split_by!r}; {close_match(self.split_by, SPLIT_BY)}",
                f"use one of {', '.join(SPLIT_BY)}",
            )
        if not 0 <= self.valid <= 1:
            raise RecipeError(
                "dataset.valid",
                f"is {self.valid}, must be 0..1",
                "use 0.05 for one record in twenty",
            )

    def reaches(self) -> list[Reach]:
        """With `allow_outside`, if a data set has this key: any file named by its records."""
        if not getattr(self, "allow_outside", False):
            return []
        return [Reach(READS, "/", "allow_outside", "every file that its records name", "true")]

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield all records in a fixed order, whatever the split."""
        raise NotImplementedError

    def build(self) -> FileSource:
        """Scan the files; new and changed pictures are read once (not decoded).

        Raises:
            RecipeError: a value is invalid.
            DataError: the path does not exist.
        """
        self.check()
        path = index_path(self.cache_dir)
        with PictureIndex.open(path) as index:
            records = from_hub(self.scan(index), getattr(self, "path", None))
            if self.split_by == "look":
                records = in_groups_of_looks(records, index)
            return FileSource(self, records)


class Picture(Protocol):
    """A picture of a record: a file, or one drawn when it is loaded; `key` as in `Image`."""

    @property
    def key(self) -> str: ...

    def load(self) -> PixelArray: ...


@dataclass(frozen=True)
class FoundRecord:
    """A valid record.

    Args:
        id: unique id in the data set.
        place: name in messages.
        parts: pictures and texts, in order; a text is a tuple of alternatives, the canonical one first.
        provenance: licence and source stated by the record.
        names: the parts' names as fields of tasks; (): none.
        responses: indices of the parts that are answers of a conversation.
        turns: indices of the parts that start a turn of a conversation.
        group: records of one group, such as questions about a picture, are in the same split; "": none.
        look: what decides the split of all records whose pictures look alike; "": not compared.
    """

    id: str
    place: str
    parts: tuple[Picture | tuple[str, ...], ...]
    provenance: Provenance = Provenance()  # noqa: RUF009  # frozen
    names: tuple[str, ...] = ()
    responses: frozenset[int] = frozenset()
    turns: frozenset[int] = frozenset()
    group: str = ""
    look: str = ""

    @property
    def pictures(self) -> list[Picture]:
        """The parts that are pictures."""
        return [part for part in self.parts if not isinstance(part, tuple)]

    def name_in_splits(self, split_by: str) -> str:
        """Return the name that decides the split without a group: the first picture's key for "picture", otherwise the id."""
        keys = (part.key for part in self.pictures)
        return next(keys, self.id) if split_by == "picture" else self.id


class FileSource(DocumentSource):
    """Documents from files.

    Args:
        config: `split` and `valid` select the records.
        records: results of a scan.
    """

    def __init__(
        self, config: FileSourceConfig, records: Iterable[FoundRecord | SkippedRecord]
    ) -> None:
        from cm3run.progress import make_bar

        self._records: list[FoundRecord] = []
        self._skipped: list[SkippedRecord] = []
        seen: dict[str, str] = {}
        for record in make_bar(
            records, desc="scanning the data set", unit=" records", delay=2, leave=False
        ):
            if isinstance(record, SkippedRecord):
                self._skipped.append(record)
            elif record.id in seen:
                self._skipped.append(
                    SkippedRecord(
                        record.place,
                        f"its id {record.id!r} is also the id of {seen[record.id]}",
                        "give each record a unique id",
                    )
                )
            else:
                seen[record.id] = record.place
                name = record.look or record.group or record.name_in_splits(config.split_by)
                if config.split in ("all", split_of(name, config.valid)):
                    self._records.append(record)
        self._fingerprint = _fingerprint(self._records)

    @property
    def records(self) -> Sequence[FoundRecord]:
        """The records of the documents, in order."""
        return self._records

    def __len__(self) -> int:
        return len(self._records)

    def id(self, index: int) -> str:
        """The record's id, or its file name."""
        return self._records[index].id

    def group(self, index: int) -> str:
        """The record's group."""
        return self._records[index].group

    def provenance(self, index: int) -> Provenance:
        """The record's licence, source and attribution."""
        return self._records[index].provenance

    def original(self, index: int) -> Original | None:
        """The unchanged file of the record's last picture; for a picture drawn when it is loaded, a PNG."""
        pictures = self._records[index].pictures
        if not pictures or not isinstance(stored := pictures[-1], StoredPicture):
            return super().original(index)
        content = stored.content()
        return Original(suffix_of(content), content)

    def record(self, index: int, rng: np.random.Generator | None = None) -> Record:
        """Return the parts by name; see `DocumentSource.record` for records whose parts have no names."""
        if not self._records[index].names:
            return super().record(index, rng)
        values = [
            segment.text if isinstance(segment, Text) else segment
            for segment in self.document(index, rng)
        ]
        return dict(zip(self._records[index].names, values, strict=True))

    @property
    def skipped(self) -> list[SkippedRecord]:
        """Return the bad records of the whole data set, whatever the split."""
        return list(self._skipped)

    @property
    def fingerprint(self) -> str:
        """Hash of ids and pictures, in order."""
        return self._fingerprint

    def texts(self) -> Iterator[str]:
        """Yield all texts, including alternatives."""
        for record in self._records:
            for part in record.parts:
                if isinstance(part, tuple):
                    yield from part

    def text_alternatives(self, index: int) -> list[tuple[str, ...]]:
        """Return the alternatives of each text."""
        return [part for part in self._records[index].parts if isinstance(part, tuple)]

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        record = self._records[index]
        segments: list[Segment] = []
        for place, part in enumerate(record.parts):
            asked, starts = place in record.responses, place in record.turns
            if not isinstance(part, tuple):
                segments.append(Image(part.key, part.load, response=asked, starts_turn=starts))
                continue
            text = part[0] if rng is None else part[int(rng.integers(len(part)))]
            segments.append(Text(text, ((0, len(text)),) if asked else (), starts))
        return tuple(segments)


def from_hub(
    records: Iterable[FoundRecord | SkippedRecord], path: object
) -> Iterator[FoundRecord | SkippedRecord]:
    """Yield the records of a path; of those from the Hub, the repository and its commit are the source of records that
    state none."""
    for record in records:
        if isinstance(record, FoundRecord) and not record.provenance.source:
            source = source_of(path)
            if source:
                record = replace(record, provenance=replace(record.provenance, source=source))
        yield record


def in_groups_of_looks(
    records: Iterable[FoundRecord | SkippedRecord], index: PictureIndex
) -> Iterator[FoundRecord | SkippedRecord]:
    """Yield the records, those of a group or whose pictures look alike (`looks.look_alikes`) with the same `look`: the
    smallest key of a picture among them. Pictures are decoded the first time; records of bad ones become skipped.

    A record without a picture or a group keeps an empty `look`.
    """
    from cm3plugins.datasets.looks import Groups, look_alikes

    scanned = list(records)
    loaders = {
        picture.key: picture.load
        for record in scanned
        if isinstance(record, FoundRecord)
        for picture in record.pictures
    }
    looks = index.looks(loaders)
    keys = [key for key, look in looks.items() if isinstance(look, bytes)]
    groups = Groups(keys)
    for first, second in look_alikes([look for look in looks.values() if isinstance(look, bytes)]):
        groups.join(keys[first], keys[second])
    good: list[FoundRecord | SkippedRecord] = []
    firsts: dict[str, str] = {}  # group of records -> the key of one of its pictures
    for record in scanned:
        if isinstance(record, SkippedRecord):
            good.append(record)
            continue
        own = [picture.key for picture in record.pictures]
        found = (looks[key] for key in own)
        if (error := next((one for one in found if isinstance(one, DataError)), None)) is not None:
            good.append(SkippedRecord(record.place, error.cause, error.next_step))
            continue
        good.append(record)
        if own and record.group:
            own.append(firsts.setdefault(record.group, own[0]))
        for key in own[1:]:
            groups.join(own[0], key)
    for record in good:
        if isinstance(record, FoundRecord):
            one = next((picture.key for picture in record.pictures), firsts.get(record.group))
            record = record if one is None else replace(record, look=groups.first(one))
        yield record


def split_of(record_id: str, valid: float) -> str:
    """Return "train" or "valid", by the first 64 bits of the id's SHA-256.

    >>> [split_of(name, 0.5) for name in ("a", "b", "c", "d")]
    ['train', 'valid', 'valid', 'valid']
    """
    place = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:8], "big")
    return "valid" if place < valid * 2.0**64 else "train"


def captions_of(texts: object, place: str) -> tuple[str, ...]:
    """Return the captions in a value: a string, or a list of strings.

    Surrounding whitespace is stripped; empty captions are dropped.

    Raises:
        DataError: the value has another type, invalid Unicode, or no caption.
    """
    items = [texts] if isinstance(texts, str) else texts
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        wrong = (
            next((item for item in items if not isinstance(item, str)), None)
            if isinstance(items, list)
            else texts
        )
        raise DataError(
            place,
            f"a caption is {type_name(wrong)}, not a text",
            "write it in quotes, or a list of texts",
        )
    kept = tuple(stripped for item in items if (stripped := item.strip()))
    if not kept:
        raise DataError(place, "the caption is empty", "write one, or remove the record")
    for caption in kept:
        if not is_unicode(caption):
            raise DataError(
                place,
                "the caption is not valid Unicode",
                "remove the lone surrogate (\\ud800 to \\udfff)",
            )
    return kept


def is_unicode(text: str) -> bool:
    """Whether a string has no lone surrogate."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def type_name(value: object) -> str:
    """Name a JSON value's type in words for its author."""
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def existing(path: str, *, folder: bool) -> Path:
    """Return the folder or file of `dataset.path`; raises `DataError` if it does not exist."""
    found = local(path)
    is_folder, is_file = found.is_dir(), found.is_file()
    if not (is_folder if folder else is_file):
        wanted, other = ("folder", "file") if folder else ("file", "folder")
        cause = f"there is no such {wanted}"
        if is_folder or is_file:
            cause = f"is a {other}, not a {wanted}"
        raise DataError(f"dataset.path {found}", cause, "correct dataset.path")
    return found


def boundary(folder: Path, allow_outside: bool) -> Path | None:
    """Return the folder that `check_inside` limits files to, with links resolved; None: no limit."""
    return None if allow_outside else Path(os.path.realpath(folder))


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file is outside a folder, by its path or by links; those in a download from the Hub are not."""
    real = Path(os.path.realpath(path))
    return not real.is_relative_to(folder) and not is_download(path, folder)


def check_inside(path: Path, inside: Path | None, place: str) -> None:
    """Reject a file outside `inside`, by path or by links: the data set may come from anybody.

    Raises:
        DataError: the file is outside.
    """
    if inside is not None and leads_out(path, inside):
        raise DataError(
            place,
            f"is outside the data set's folder {inside}",
            "copy it into the folder, or set dataset.allow_outside=true if you trust the data set",
        )


def found_or_skipped(
    items: Iterable[T], find: Callable[[T], FoundRecord]
) -> Iterator[FoundRecord | SkippedRecord]:
    """Yield the record that `find` returns for each item, or the reason if it raises `DataError`."""
    for item in items:
        try:
            yield find(item)
        except DataError as error:
            yield skipped(error)


def skipped(error: DataError) -> SkippedRecord:
    """Return a bad record with the reason from its error."""
    return SkippedRecord(error.place, error.cause, error.next_step)


def read_utf8(path: Path, place: str, max_bytes: int | None = None) -> str:
    """Read a text file, dropping its byte order mark.

    Raises:
        DataError: it can't be read, has more than `max_bytes`, or is not UTF-8.
    """
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise DataError(
                place,
                f"has {size} bytes, above the limit of {max_bytes} for a caption",
                "shorten or remove it",
            )
        return read_text(path, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(place, f"is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise DataError(
            place, f"can't be read: {error.strerror}", "correct the path or its permissions"
        ) from error


def json_lines(place: str, content: str) -> Iterator[tuple[str, dict[str, Any]] | DataError]:
    """Yield (place, object) of each non-blank line, or a `DataError` if it is not a JSON object."""
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        here = f"{place}:{number}"
        try:
            values = parse_json(line, here, "correct the line")
        except DataError as error:
            yield error
            continue
        if isinstance(values, dict):
            yield here, values
        else:
            yield DataError(
                here, f"is {type_name(values)}, not an object", 'write {"text": ..., "image": ...}'
            )


def _fingerprint(records: Iterable[FoundRecord]) -> str:
    digest = hashlib.sha256()
    for record in records:
        keys = ["text" if isinstance(part, tuple) else part.key for part in record.parts]
        digest.update("\0".join((record.id, *keys, "\n")).encode())
    return digest.hexdigest()
