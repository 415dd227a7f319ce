"""Data set `webdataset`: tar files in which `KEY.jpg` and `KEY.txt` (or `KEY.json`) are one record.

The tars are read once to find the offset of each picture; this index is stored in the cache folder.
Nothing is extracted: pictures are read by random access. The key is the member's name up to the first
dot of its last part, as in the package `webdataset`, which is not required.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import math
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from cm3core.errors import DataError
from cm3core.files import check_regular
from cm3core.interfaces.dataset import CAPTIONED, Provenance, SkippedRecord
from cm3core.interfaces.reach import READS, TEXT, Outside
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    FileSourceConfig,
    FoundRecord,
    captions_of,
    is_unicode,
    skipped,
)
from cm3plugins.datasets.hub_data import local, local_pattern
from cm3plugins.datasets.pictures import SUFFIXES, PictureIndex, StoredPicture, facts_of
from cm3plugins.datasets.stated_licences import stated
from cm3run.hub import is_address
from cm3run.json_text import parse_json

if TYPE_CHECKING:
    from tqdm import tqdm

BLOCK = tarfile.BLOCKSIZE
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
#: Patterns with more files are rejected.
MAX_SHARDS = 100_000
#: Longer member headers are rejected: `tarfile` holds a header in memory, however long it claims to be.
MAX_HEADER_BYTES = 1 << 20


_LINK = "a link, which contains no data"
_NO_LINK = "recreate the tar with the targets of links: tar --dereference --hard-dereference"


@dataclass(kw_only=True)
class WebDatasetSourceConfig(FileSourceConfig):
    """Tar shards; ids are the records' keys.

    Args:
        path: a tar, a folder of tars, or a pattern: `data-{000..099}.tar`, `{a,b}.tar`,
            `data-*.tar`.
        caption_keys: keys of `KEY.json` that may hold the caption, if there is no `KEY.txt`; the first
            one present is used. Its keys `licence`, `source` and `attribution` state a record's
            provenance.
    """

    outside: ClassVar[Mapping[str, Outside]] = {
        "path": Outside(READS, "its tars"),
        "caption_keys": TEXT,
    }

    reads: ClassVar[tuple[str, ...]] = (".tar",)
    path: str
    caption_keys: tuple[str, ...] = ("caption", "text")

    def record_fields(self) -> tuple[str, ...]:
        """A picture and its caption."""
        return CAPTIONED

    def scan(self, index: PictureIndex) -> Iterator[FoundRecord | SkippedRecord]:
        """Yield records shard by shard, in the order of their first members."""
        for path in shard_paths(self.path):
            try:
                content = index.shard(path, read_shard)
            except DataError as error:
                yield skipped(error)
                continue
            except OSError as error:
                yield SkippedRecord(
                    str(path),
                    f"can't be read: {error.strerror}",
                    "correct its permissions, or copy it again",
                )
                continue
            for cause, next_step in content["problems"]:
                yield SkippedRecord(str(path), cause, next_step)
            for key, members in content["records"].items():
                try:
                    yield self._record(path, key, members, index)
                except DataError as error:
                    yield skipped(error)

    def _record(
        self, path: Path, key: str, members: dict[str, Any], index: PictureIndex
    ) -> FoundRecord:
        if not is_unicode(key):
            raise DataError(
                f"{path}: {_printable(key)}", "its name in the tar is not valid UTF-8", "rename it"
            )
        place = f"{path}: {key}"
        pictures = [suffix for suffix in members if suffix in SUFFIXES]
        if not pictures:
            cause = f"has no picture ({', '.join(SUFFIXES)}), only {', '.join(sorted(members))}"
            raise DataError(place, cause, "add a picture, or remove the record")
        if len(pictures) > 1:
            raise DataError(
                place,
                f"has several pictures: {', '.join(pictures)}",
                "give each picture its own key",
            )
        captions = self._captions(place, members)
        offset, size, sha256, width, height, cause, next_step = members[pictures[0]]
        here = place + pictures[0]
        if cause is not None:
            raise DataError(here, cause, next_step)
        picture = index.known(
            StoredPicture(sha256, width, height, here, path, offset, size, index.path)
        )
        return FoundRecord(key, place, (captions, picture), self._provenance(place, members))

    def _provenance(self, place: str, members: dict[str, Any]) -> Provenance:
        """Return the provenance in `KEY.json`, even if the caption is in `KEY.txt`; empty if the file is not an object."""
        text = members.get(".json")
        try:
            values = json.loads(text) if isinstance(text, str) else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            return Provenance()
        found = stated(f"{place}.json", values)
        # img2dataset's key of the downloaded address
        address = values.get("url")
        if found.source or not isinstance(address, str) or not is_unicode(address):
            return found
        return replace(found, source=address)

    def _captions(self, place: str, members: dict[str, Any]) -> tuple[str, ...]:
        if (text := members.get(".txt")) is not None:
            if isinstance(text, dict):
                raise DataError(f"{place}.txt", text["cause"], "write UTF-8 text")
            return captions_of(text.splitlines(), f"{place}.txt")
        if (text := members.get(".json")) is None:
            raise DataError(
                place,
                "has no caption: neither .txt nor .json",
                f"add {place.rpartition(' ')[2]}.txt",
            )
        if isinstance(text, dict):
            raise DataError(f"{place}.json", text["cause"], "write UTF-8 JSON")
        values = parse_json(text, f"{place}.json", "correct it, or add a .txt")
        found = [name for name in self.caption_keys if isinstance(values, dict) and name in values]
        if not found:
            cause = f"has no key {' or '.join(map(repr, self.caption_keys))}"
            raise DataError(f"{place}.json", cause, "set dataset.caption_keys")
        return captions_of(values[found[0]], f"{place}.json {found[0]}")


def shard_paths(pattern: str) -> list[Path]:
    """Return the tars of a path, folder or pattern, in order.

    Raises:
        DataError: a tar is missing.
    """
    whole = _local(pattern)
    if whole.is_dir():
        paths = sorted(whole.glob("*.tar"))
        if not paths:
            raise DataError(
                f"dataset.path {whole}", "the folder contains no .tar", "correct dataset.path"
            )
        return paths
    if whole.is_file():
        return [whole]
    paths = []
    for name in expand_braces(str(whole)):
        found = [Path(name)]
        if glob.has_magic(name):
            found = sorted(map(Path, glob.glob(name)))  # noqa: PTH207  # the pattern may be absolute
        if not found or not found[0].is_file():
            cause = (
                f"{name} is not a regular file"
                if found and found[0].exists()
                else f"there is no {name}"
            )
            raise DataError(f"dataset.path {pattern}", cause, "correct dataset.path")
        paths += found
    return paths


def _local(pattern: str) -> Path:
    """The path of tars on this machine; from the Hub, they are downloaded first."""
    if is_address(pattern) and pattern.lower().endswith(".tar"):
        return local_pattern(pattern, expand_braces(pattern))
    return local(pattern, (".tar",), below=False)


def expand_braces(pattern: str) -> list[str]:
    """Expand a pattern with `{first..last}` (zero-padded like `first`) and `{a,b}`.

    >>> expand_braces("data-{08..10}.tar")
    ['data-08.tar', 'data-09.tar', 'data-10.tar']

    Raises:
        DataError: there are more than `MAX_SHARDS`; they are counted before expanding.
    """
    braces = list(BRACES.finditer(pattern))
    if math.prod(map(_num_choices, braces)) > MAX_SHARDS:
        raise DataError(
            f"dataset.path {pattern}",
            f"the pattern expands to more than {MAX_SHARDS:,} files",
            "use fewer, larger tars, or their folder",
        )
    ends = [0, *(match.end() for match in braces)]
    starts = [*(match.start() for match in braces), len(pattern)]
    between = [pattern[end:start] for end, start in zip(ends, starts, strict=True)]
    return [
        between[0] + "".join(map("".join, zip(chosen, between[1:], strict=True)))
        for chosen in itertools.product(*map(_choices, braces))
    ]


def _num_choices(braces: re.Match[str]) -> int:
    first, last, listed = braces.groups()
    if listed is not None:
        return listed.count(",") + 1
    if max(len(first), len(last)) > sys.int_info.str_digits_check_threshold:
        return MAX_SHARDS + 1  # Python doesn't convert longer numbers
    return max(int(last) + 1 - int(first), 0)


def _choices(braces: re.Match[str]) -> list[str]:
    first, last, listed = braces.groups()
    if listed is not None:
        return listed.split(",")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


class _Headers(io.BufferedIOBase):
    """A tar for `tarfile`, which reads only headers of at most `MAX_HEADER_BYTES`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, more than {MAX_HEADER_BYTES}")
        return self._file.read(size)

    def seek(self, place: int, whence: int = 0, /) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


@dataclass
class _Found:
    """Contents of a tar: `records` maps key -> suffix -> text, or place and facts of a picture; `dotted` maps a key
    -> the first picture's name with a dot before its suffix."""

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    dotted: dict[str, str] = field(default_factory=dict)


def read_shard(path: Path) -> dict[str, Any]:
    """Return the index entry for a tar: its `records` and `problems`.

    `records` maps key -> suffix -> text, or place and facts of a picture.
    """
    from cm3run.progress import make_bar

    check_regular(path, str(path))
    found = _Found()
    with (
        path.open("rb") as file,
        make_bar(
            total=path.stat().st_size,
            unit="B",
            unit_scale=True,
            desc=f"reading {path.name} once",
            delay=2,
            leave=False,
        ) as bar,
    ):
        start = file.read(2)
        if start in COMPRESSED:
            raise DataError(
                str(path),
                f"is compressed ({COMPRESSED[start]}), so pictures can't be read by random access",
                "decompress it; pictures are already compressed",
            )
        file.seek(0)
        _read_members(file, path, bar, found)
    # next to a picture of the key, it is another kind of member, such as a mask
    found.problems += [
        (
            f"{_printable(name)} is left out: a record's key ends at the first dot, and {_printable(key)!r} "
            "has no other picture or text",
            "rename it and its related members, without dots in the key",
        )
        for key, name in found.dotted.items()
        if key not in found.records
    ]
    return {"records": found.records, "problems": found.problems}


def _read_members(file: IO[bytes], path: Path, bar: tqdm[Any], found: _Found) -> None:
    """Add a tar's members to `found`, as far as it is intact."""
    end = 0
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > bar.total:
                    raise tarfile.ReadError("unexpected end of data")
                if member.isreg() and not member.issparse():
                    _add_member(file, member, found)
                elif (member.islnk() or member.issym()) and _is_read(member.name):
                    found.problems.append(
                        (f"{_printable(member.name)} is left out: it is {_LINK}", _NO_LINK)
                    )
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                bar.update(min(end, bar.total) - bar.n)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        if not end and not found.records:
            raise DataError(str(path), f"is not a tar: {error}", "create it again") from error
        after = min(end, bar.total)
        cause = f"is truncated or damaged after byte {after} of {bar.total} ({error}); the records before it are used"
        found.problems.append((cause, "create it again, or copy it again"))
        return
    file.seek(end)
    if file.read(BLOCK).strip(b"\0") or file.tell() < end + BLOCK:
        found.problems.append(
            (
                "lacks the end marker of a tar; records may be lost",
                "create it again, or copy it again",
            )
        )


def _is_read(name: str) -> bool:
    """Whether a member with this name is part of a record."""
    stem, dot, suffix = name.rpartition("/")[2].partition(".")
    return bool(stem) and dot + suffix.lower() in (*SUFFIXES, ".txt", ".json")


def _add_member(
    file: IO[bytes],
    member: tarfile.TarInfo,
    found: _Found,
) -> None:
    """Add a member to its record: text directly, a picture as its place and facts. A picture with a dot in its
    name before the suffix goes into `dotted`: its key -> the first such name."""
    from cm3core.images import check_file_bytes

    folder, _, name = member.name.removeprefix("./").rpartition("/")
    stem, dot, suffix = name.partition(".")
    if not stem and dot + suffix.lower() in SUFFIXES:
        found.problems.append(
            (
                f"{_printable(member.name)} is left out: it has no key, the name up to the first dot",
                f"give it and its caption a name, such as 000{dot}{suffix}",
            )
        )
    key, suffix = (f"{folder}/{stem}" if folder else stem), dot + suffix.lower()
    if not _is_read(member.name):
        if stem and suffix.endswith(SUFFIXES):
            found.dotted.setdefault(key, member.name)
        return  # other members (.cls, .npy, macOS's ._files) are ignored
    record = found.records.setdefault(key, {})
    if suffix in record:
        found.problems.append(
            (
                f"{_printable(member.name)} occurs twice; the first is used",
                "give each record a unique key",
            )
        )
        return
    position = file.tell()  # tarfile continues from here
    file.seek(member.offset_data)
    if suffix in SUFFIXES:
        facts: tuple[str, int, int, str | None, str | None]
        try:
            check_file_bytes(member.size, member.name)
            facts = facts_of(file.read(member.size), member.name)
        except DataError as error:
            facts = ("", 0, 0, error.cause, error.next_step)
        record[suffix] = (member.offset_data, member.size, *facts)
    elif member.size > MAX_TEXT_BYTES:
        record[suffix] = {
            "cause": f"has {member.size} bytes, above the limit of {MAX_TEXT_BYTES} for a caption"
        }
    else:
        try:
            record[suffix] = file.read(member.size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            record[suffix] = {"cause": f"is not UTF-8 (byte {error.start})"}
    file.seek(position)


def _printable(name: str) -> str:
    """Return a member's name with invalid UTF-8 replaced, so that it can be shown anywhere."""
    return name.encode(errors="replace").decode()
