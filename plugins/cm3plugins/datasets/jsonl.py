"""Data set `jsonl`: one JSON object per line, with a text and a picture, or several of both.

    {"id": "rex", "text": "Rex, a dog", "image": "dogs/rex.png"}
    {"text": ["a cat asleep", "a sleeping cat"], "image": "cat.jpg"}
    {"id": "story-1", "segments": [{"text": "First"}, {"image": "1.png"}, {"text": "then"}, {"image": "2.png"}]}

Paths are relative to the file. Other keys are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from cm3core.errors import DataError
from cm3core.interfaces.dataset import SkippedRecord
from cm3core.interfaces.reach import READS, Outside
from cm3plugins.datasets.file_source import (
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
    type_name,
)
from cm3plugins.datasets.pictures import PictureIndex, StoredPicture
from cm3plugins.datasets.stated_licences import stated

FORM = '{"text": ..., "image": ...} or {"segments": [...]}'


@dataclass(kw_only=True)
class JSONLSourceConfig(FileSourceConfig):
    """A JSONL manifest.

    The id is the record's `id` or, if missing, its picture's path, or a hash of its segments.

    Args:
        path: the manifest.
        allow_outside: read pictures outside the manifest's folder, through absolute paths, `../` or
            links; false: skip their records.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its pictures and captions"),
    }

    reads: ClassVar[tuple[str, ...]] = (".jsonl",)
    path: str
    allow_outside: bool = False

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records in the order of their lines."""
        path = existing(self.path, folder=False)
        pictures = PicturesOfLines(path.parent, boundary(path.parent, self.allow_outside), index)

        def find(line: tuple[str, dict[str, Any]] | DataError) -> FoundRecord:
            if isinstance(line, DataError):
                raise line
            place, values = line
            return _record(place, values, pictures)

        return found_or_skipped(json_lines(str(path), read_utf8(path, str(path))), find)


@dataclass(frozen=True)
class PicturesOfLines:
    """The pictures named in lines, relative to `folder` (called `of` in messages) and, unless it is None,
    inside `inside`."""

    folder: Path
    inside: Path | None
    index: PictureIndex
    of: str = "the file"

    def picture(self, place: str, value: object, name: str = "image") -> StoredPicture:
        """Return the picture at the path `value`; `name`: its name in messages.

        Raises:
            DataError: it is not a path, or the picture does not exist or can't be used.
        """
        wanted = f"use the picture's path relative to {self.of}"
        if not isinstance(value, str) or not value:
            cause = (
                f"{name!r} is empty"
                if value == ""
                else f"{name!r} is {type_name(value)}, not a path"
            )
            raise DataError(place, cause, wanted)
        if "://" in value:
            next_step = "download the picture and use its path; addresses are not fetched"
            raise DataError(place, f"{name!r} is an address: {value!r}", next_step)
        if not is_unicode(value) or "\0" in value:
            raise DataError(place, f"{name!r} is {value!a}, not a path", wanted)
        try:
            check_inside(self.folder / value, self.inside, str(self.folder / value))
            return self.index.picture(self.folder / value, str(self.folder / value))
        except DataError as error:
            raise DataError(
                f"{place}: {name} {error.place}", error.cause, error.next_step
            ) from error


def _record(place: str, values: dict[str, Any], pictures: PicturesOfLines) -> FoundRecord:
    if "segments" in values:
        if extra := [key for key in ("text", "image") if key in values]:
            raise DataError(place, f"has 'segments' and {extra[0]!r}", f"write {FORM}")
        parts = _segments(place, values["segments"], pictures)
        content = json.dumps(values["segments"], sort_keys=True).encode()
        default = f"segments-{hashlib.sha256(content).hexdigest()[:12]}"
    else:
        for key in ("text", "image"):
            if key not in values:
                raise DataError(place, f"has no {key!r}", f"write {FORM}")
        parts = (
            captions_of(values["text"], place),
            pictures.picture(place, values["image"]),
        )
        default = values["image"]
    name = values.get("id", default)
    if not isinstance(name, str) or not name or not is_unicode(name):
        cause = f"'id' is {type_name(name)}" if not isinstance(name, str) else f"'id' is {name!a}"
        raise DataError(place, f"{cause}, not a name", "use a text, or leave it out")
    return FoundRecord(name, place, parts, stated(place, values))


def _segments(
    place: str, segments: object, pictures: PicturesOfLines
) -> tuple[StoredPicture | tuple[str, ...], ...]:
    if not isinstance(segments, list):
        raise DataError(place, f"'segments' is {type_name(segments)}, not a list", f"write {FORM}")
    if not segments:
        raise DataError(place, "'segments' is empty", "add at least one, or remove the record")
    parts: list[StoredPicture | tuple[str, ...]] = []
    for number, segment in enumerate(segments):
        here = f"{place} segments[{number}]"
        if not isinstance(segment, dict) or len(segment.keys() & {"text", "image"}) != 1:
            raise DataError(
                here,
                "is not an object with either 'text' or 'image'",
                'write {"text": ...} or {"image": ...}',
            )
        if "text" in segment:
            parts.append(captions_of(segment["text"], here))
        else:
            parts.append(pictures.picture(here, segment["image"]))
    return tuple(parts)
