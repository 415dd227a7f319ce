"""What is in a folder of pictures: which data set reads it, sizes, captions, copies, blank pictures, splits.

Every picture is decoded once; what is learnt of looks is kept in the index of pictures, where training finds it.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from cm3core.errors import DataError
from cm3core.images import is_blank
from cm3core.interfaces.dataset import SkippedRecord
from cm3plugins.datasets.file_source import FileSource, FileSourceConfig, FoundRecord, split_of
from cm3plugins.datasets.folder import (
    CAPTION_FILES,
    DrawnSvg,
    FolderSourceConfig,
    tells_nothing,
)
from cm3plugins.datasets.looks import SIDE
from cm3plugins.datasets.pictures import SUFFIXES, PictureIndex, index_path
from cm3plugins.datasets.table import METADATA, TableSourceConfig
from cm3plugins.datasets.tuxpaint import TuxPaintSourceConfig
from cm3run.words import words_of

#: Pixels per side at which SVG files are drawn: four times those of the pictures that are generated.
SVG_SIZE = 256
#: Texts of which each line but the first is a translation.
_TRANSLATED = "xx.utf8="


@dataclass(frozen=True)
class Reader:
    """How a folder is read.

    Args:
        name: of the data set.
        config: its config, with everything in one split.
        reason: why it is read so, for the recipe's comments.
    """

    name: str
    config: FileSourceConfig
    reason: str

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that differ from the data set's defaults, without those of the split."""
        config: Any = self.config  # each has a path
        usual = type(config)(path=config.path)
        left_out = ("split", "valid", "split_by")
        return {
            key: value
            for key, value in vars(config).items()
            if key not in left_out and value != getattr(usual, key, None)
        }


def reader_of(folder: Path) -> Reader:
    """Choose the data set for a folder: by what lies in it.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(str(folder), "is no folder", "give the folder of your pictures")
    path = str(folder)
    if found := next((name for name in METADATA if (folder / name).is_file()), None):
        columns = {"caption": "text", "image": "file_name"}
        table = TableSourceConfig(path=str(folder / found), split="all", columns=columns)
        return Reader("table", table, f"from {found}")
    files = [one for one in folder.rglob("*") if not one.name.startswith(".")]
    texts = {one.with_suffix("") for one in files if one.suffix.lower() == ".txt"}
    pictures = [one for one in files if one.suffix.lower() in SUFFIXES]
    drawings = [one for one in files if one.suffix.lower() == ".svg"]
    written = next((name for name in CAPTION_FILES if (folder / name).is_file()), None)
    captioned = [one for one in (*pictures, *drawings) if one.with_suffix("") in texts]
    if written is None and captioned and _is_translated(captioned):
        stamps = TuxPaintSourceConfig(path=path, split="all")
        return Reader(
            "tuxpaint",
            stamps,
            "the first line of each .txt, which holds a caption in each language, as Tux Paint's do",
        )
    own = FolderSourceConfig(path=path, split="all")
    reasons = [f"from {written}" if written else ""]
    if written is None and captioned:
        reasons = [f"from .txt files beside {len(captioned):,} pictures"]
    if written is None and len(captioned) < len(pictures) + len(drawings):
        own = replace(own, names_as_captions=True)
        reasons.append("from file and folder names where none is written")
    if drawings:
        own = replace(own, svg_size=SVG_SIZE)
        reasons.append(f"SVG files are drawn at {SVG_SIZE} pixels")
    return Reader("folder", own, "; ".join(filter(None, reasons)))


def _is_translated(captioned: Sequence[Path]) -> bool:
    """Whether most of some captions have a line per language."""
    some = captioned[:: max(1, len(captioned) // 20)]
    texts = (one.with_suffix(".txt").read_bytes()[:4096].splitlines()[1:] for one in some)
    ending = _TRANSLATED[2:].encode()
    return sum(any(ending in line for line in lines) for lines in texts) > len(some) / 2


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        reader: how the folder is read.
        source: all of its documents.
        valid: share of the documents to hold out.
        blank: files of blank pictures.
    """

    reader: Reader
    source: FileSource
    valid: float
    blank: Sequence[str]

    @classmethod
    def of(cls, reader: Reader, valid: float) -> Survey:
        """Read everything.

        Raises:
            DataError: nothing can be read.
        """
        config = replace(reader.config, split="all", split_by="look")
        source = config.build()
        if not len(source):
            first = source.skipped[0] if source.skipped else None
            raise DataError(
                first.place if first else reader.name,
                f"no picture can be read: {first.cause}" if first else "there is no picture",
                first.next_step if first else "give the folder of your pictures",
            )
        with PictureIndex.open(index_path(config.cache_dir)) as index:
            pictures = {one.pictures[0].key: one.pictures[0] for one in source.records}
            looks = index.looks({key: one.load for key, one in pictures.items()})
        blank = {
            key
            for key, look in looks.items()
            if isinstance(look, bytes) and _may_be_blank(look) and is_blank(pictures[key].load())
        }
        places = [one.place for one in source.records if one.pictures[0].key in blank]
        return cls(reader, source, valid, places)

    @property
    def records(self) -> Sequence[FoundRecord]:
        """What can be read."""
        return self.source.records

    @property
    def skipped(self) -> Sequence[SkippedRecord]:
        """What can't be read, with reasons."""
        return self.source.skipped

    @cached_property
    def keys(self) -> list[str]:
        """The key of each picture: equal for equal files."""
        return [one.pictures[0].key for one in self.records]

    @cached_property
    def groups(self) -> list[str]:
        """The group of look-alikes of each picture."""
        return [one.look for one in self.records]

    @cached_property
    def captions(self) -> list[str]:
        """The first caption of each picture."""
        texts = (
            next(part for part in one.parts if isinstance(part, tuple)) for one in self.records
        )
        return [text[0] for text in texts]

    @cached_property
    def unnamed(self) -> list[str]:
        """The pictures whose files and folders only count, so that their captions have no word."""
        if not getattr(self.reader.config, "names_as_captions", False):
            return []
        both = zip(self.records, self.captions, strict=True)
        return [one.id for one, caption in both if tells_nothing(one.id, caption)]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the pictures."""
        found = []
        for one in self.records:
            picture: Any = one.pictures[0]  # a file, or a drawing that has one size
            drawn = isinstance(picture, DrawnSvg)
            found.append((picture.size,) * 2 if drawn else (picture.width, picture.height))
        return found

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def num_copies(self) -> int:
        """Number of pictures with the bytes of an earlier one."""
        return len(self.keys) - len(set(self.keys))

    @cached_property
    def looks(self) -> list[int]:
        """Sizes of the groups of look-alikes, copies left out, the largest first."""
        groups: dict[str, set[str]] = defaultdict(set)
        for group, key in zip(self.groups, self.keys, strict=True):
            groups[group].add(key)
        return sorted((len(one) for one in groups.values() if len(one) > 1), reverse=True)

    def split(self, names: Sequence[str]) -> list[str]:
        """The split of each picture, if these names decide."""
        return [split_of(name, self.valid) for name in names]

    @cached_property
    def num_valid(self) -> int:
        """Number of held-out pictures when looks decide."""
        return self.split(self.groups).count("valid")

    @cached_property
    def num_across(self) -> tuple[int, int]:
        """If files' names decided: number of held-out pictures that look like one in train, and of held-out ones."""
        splits = self.split([one.id for one in self.records])
        trained = {
            group for group, split in zip(self.groups, splits, strict=True) if split == "train"
        }
        held = [group for group, split in zip(self.groups, splits, strict=True) if split == "valid"]
        return sum(group in trained for group in held), len(held)

    @cached_property
    def words(self) -> Counter[str]:
        """Word -> number of captions with it."""
        return Counter(word for text in self.captions for word in set(words_of(text)))

    @cached_property
    def scripts(self) -> dict[str, int]:
        """Script -> number of captions with letters of it, the most frequent first."""
        found = Counter(script for text in self.captions for script in set(scripts_of(text)))
        return dict(found.most_common())

    @cached_property
    def size_in_words(self) -> str:
        """Smallest, median and largest picture."""
        by_area = sorted(self.sizes, key=lambda one: one[0] * one[1])
        middle = (median(one[0] for one in self.sizes), median(one[1] for one in self.sizes))
        shown = (by_area[0], middle, by_area[-1])
        smallest, usual, largest = (f"{width:g} x {height:g}" for width, height in shown)
        return f"{smallest} to {largest} pixels, median {usual}"


def _may_be_blank(look: bytes) -> bool:
    """Whether a look (`looks.look_of`) has so few levels of ink that the picture may be blank."""
    return len(set(look[: SIDE**2])) <= 4


def scripts_of(text: str) -> Iterator[str]:
    """The scripts of a text's letters, by the first word of their names in Unicode.

    >>> sorted(set(scripts_of("Eule 1, 梟, сова")))
    ['CJK', 'CYRILLIC', 'LATIN']
    """
    for letter in text:
        if letter.isalpha() and (name := unicodedata.name(letter, "")):
            yield name.split()[0]
