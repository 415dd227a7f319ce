"""The drawings of a folder as documents: a caption, then a picture with its SVG document."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.dataset import DocumentSource, Original, Provenance, SkippedRecord
from cm3plugins.datasets.file_source import existing, is_unicode, leads_out, split_of
from cm3plugins.datasets.hub_data import source_of, title_of
from cm3plugins.datasets.svg_folder.names import names_of, style_of
from cm3plugins.datasets.svg_folder.reading import SvgFile, read_svg
from cm3plugins.svg import render_svg, renderer_version

if TYPE_CHECKING:
    import numpy as np

#: A set of icons has some thousand files; more is a collection of sets.
MOST_FILES = 20_000


class Chosen(NamedTuple):
    """See `SvgFolderConfig`."""

    split: str
    valid: float
    style: str | None
    title: str | None


@dataclass(frozen=True)
class Entry:
    """A usable drawing.

    Args:
        id: its path in the folder, without the extension.
        name: the thing it shows.
        path: its file.
        file: its content.
    """

    id: str
    name: str
    path: Path
    file: SvgFile


class SvgFolder(DocumentSource):
    """The drawings of a folder.

    Args:
        path: the folder.
        chosen: which of its drawings, and how captions name them.
        image_size: pixels per side.

    Raises:
        DataError: there is no such folder, or it has no SVG file, or too many.
    """

    def __init__(self, path: str, chosen: Chosen, image_size: int) -> None:
        self.folder = existing(path, folder=True)
        self._image_size = image_size
        self._skipped: list[SkippedRecord] = []
        #: Thing -> its first file, unusable ones included.
        self.names: dict[str, Path] = {}
        every = list(self._entries())
        files = [one.file for one in every]
        #: How captions name the set and its style.
        self.title = chosen.title or names_of([title_of(path)])[0]
        self._source = source_of(path)
        self.style = style_of(files) if chosen.style is None else chosen.style.strip()
        self.entries = [
            one for one in every if chosen.split in ("all", split_of(one.id, chosen.valid))
        ]

    def _entries(self) -> Iterator[Entry]:
        paths = sorted(_svg_files(self.folder))
        if not paths:
            raise DataError(
                f"dataset.path {self.folder}", "holds no SVG file", "name a folder of .svg files"
            )
        if len(paths) > MOST_FILES:
            raise DataError(
                f"dataset.path {self.folder}",
                f"holds more than {MOST_FILES:,} SVG files",
                "name the folder of one set",
            )
        names = names_of([path.stem for path in paths])
        drawn: dict[str, Path] = {}
        named: dict[str, Path] = {}
        for path, name in zip(paths, names, strict=True):
            self.names.setdefault(name, path)
            try:
                if not is_unicode(str(path)):
                    raise DataError(_shown(path), "its name is not valid UTF-8", "rename it")
                file = read_svg(path)
                for known, key, what in ((drawn, file.svg, "drawing"), (named, name, "name")):
                    if key in known:
                        cause = f"has the {what} of {known[key].relative_to(self.folder)}"
                        raise DataError(_shown(path), cause, "keep one of them")
            except DataError as error:
                self._skipped.append(SkippedRecord(error.place, error.cause, error.next_step))
                continue
            drawn[file.svg] = named[name] = path
            own = path.relative_to(self.folder).with_suffix("").as_posix()
            yield Entry(own, name, path, file)

    def only(self, entries: Sequence[Entry]) -> SvgFolder:
        """The folder with these of its drawings alone; `names`, style and title stay."""
        part = copy(self)
        part.__dict__.pop("fingerprint", None)
        part.entries = list(entries)
        return part

    def __len__(self) -> int:
        return len(self.entries)

    def id(self, index: int) -> str:
        """The file's path in the folder, without the extension."""
        return self.entries[index].id

    def group(self, index: int) -> str:
        """The thing."""
        return self.entries[index].name

    def provenance(self, index: int) -> Provenance:
        """The set and the name, and the repository of the Hub; the licence is not known."""
        name = self.entries[index].name
        return Provenance(source=self._source, collection=self.title, title=name)

    def original(self, index: int) -> Original:
        """The unchanged file."""
        return Original(".svg", self.entries[index].path.read_bytes())

    def caption(self, name: str) -> str:
        """The caption of a thing in this set."""
        return ", ".join(filter(None, (name, self.style, self.title)))

    @property
    def skipped(self) -> list[SkippedRecord]:
        return list(self._skipped)

    def texts(self) -> Iterator[str]:
        """Yield all captions."""
        return (self.caption(one.name) for one in self.entries)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids and drawings, and of how they are rendered."""
        digest = hashlib.sha256(f"{renderer_version()} {self._image_size}".encode())
        for one in self.entries:
            digest.update("\0".join((one.id, one.file.svg, "\n")).encode())
        return digest.hexdigest()

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        one = self.entries[index]
        key = hashlib.sha256(one.file.svg.encode()).hexdigest()[:32]
        picture = Image(
            f"svg-{renderer_version()}-{self._image_size}px/{key}",
            partial(self._pixels, one),
            drawing=lambda: one.file.svg,
        )
        return (Text(self.caption(one.name)), picture)

    def _pixels(self, one: Entry) -> PixelArray:
        try:
            return render_svg(one.file.svg, self._image_size)
        except ValueError as error:
            raise DataError(
                str(one.path), f"can't be drawn ({error})", "correct it, or leave it out"
            ) from error


def _svg_files(folder: Path) -> Iterator[Path]:
    """Yield the SVG files in a folder and its subfolders; links to folders are not followed, and links to files
    outside the folder are left out, as is what is hidden."""
    real = Path(os.path.realpath(folder))
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(parent) / name
            if name.startswith(".") or not name.lower().endswith(".svg"):
                continue
            if path.is_symlink() and leads_out(path, real):
                print(
                    f"note: {_shown(path)} is a link out of the folder and not read",
                    file=sys.stderr,
                )
                continue
            yield path


def _shown(path: Path) -> str:
    """A path for messages, with invalid UTF-8 replaced."""
    return str(path).encode(errors="replace").decode()


class WithThings(DocumentSource):
    """A folder's drawings, and the documents of another data set that show things of the same names: a memory to
    retrieve from when a model is tuned on the folder.

    Args:
        own: the folder's drawings.
        things: the other data set.
    """

    def __init__(self, own: SvgFolder, things: DocumentSource) -> None:
        names = {one.name for one in own.entries}
        self._own, self._things = own, things
        self._chosen = [index for index in range(len(things)) if things.group(index) in names]

    def __len__(self) -> int:
        return len(self._own) + len(self._chosen)

    def _at(self, index: int) -> tuple[DocumentSource, int]:
        number = len(self._own)
        if index < number:
            return self._own, index
        return self._things, self._chosen[index - number]

    def id(self, index: int) -> str:
        """The drawing's own, or that of the other data set behind `things:`."""
        source, place = self._at(index)
        return source.id(place) if source is self._own else f"things:{source.id(place)}"

    def group(self, index: int) -> str:
        """The thing."""
        source, place = self._at(index)
        return source.group(place)

    def content_keys(self, index: int) -> frozenset[str]:
        """As in its data set."""
        source, place = self._at(index)
        return source.content_keys(place)

    def is_withheld(self, index: int) -> bool:
        """As in its data set."""
        source, place = self._at(index)
        return source.is_withheld(place)

    def provenance(self, index: int) -> Provenance:
        """As in its data set."""
        source, place = self._at(index)
        return source.provenance(place)

    def original(self, index: int) -> Original | None:
        """As in its data set."""
        source, place = self._at(index)
        return source.original(place)

    @property
    def skipped(self) -> list[SkippedRecord]:
        return [*self._own.skipped, *self._things.skipped]

    def texts(self) -> Iterator[str]:
        """Yield the captions."""
        return (text_of(self.document(index)) for index in range(len(self)))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of both."""
        both = f"{self._own.fingerprint} {self._things.fingerprint}"
        return hashlib.sha256(both.encode()).hexdigest()

    def _document(self, index: int, rng: np.random.Generator | None) -> Document:
        source, place = self._at(index)
        return source.document(place, rng)
