"""The bundled icon corpus: about forty permissively licensed sets and the emoji, with names split into words and
styles, drawn at any size.

Entries and the manifest load immediately and are checked, since the folder may come from a user. A set's drawings are
unpacked when the first of them is requested, and complete renderings are stored in a cache folder, grey ones separate
from coloured ones, since most icons have no colour.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from cm3core.arguments import CountOrZero, Matching
from cm3core.errors import DataError, FileError, close_match
from cm3core.files import cache_folder, open_regular, write_bytes
from cm3icons.data.closed import FILE as CLOSED_FILE
from cm3icons.data.closed import read_closed
from cm3icons.data.copies import read_copies
from cm3icons.data.sets import (
    ASSETS,
    EMOJI_LICENCES,
    EMOJI_SET,
    SET_NAME,
    all_sets,
    title_of,
)
from cm3icons.data.splits import SPLITS
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.datasets.emoji.packages import LICENCES, STYLE_PACKAGES
from cm3plugins.datasets.vector.captions import author_and_address
from cm3plugins.datasets.vector.files import read, unpack_lines
from cm3plugins.datasets.vector.render import Renderings
from cm3plugins.svg import render_svg
from cm3run.json_text import StoredName, parse_json

REINSTALL = "reinstall cm3leon"
REBUILD = "build it again with `cm3 icons build`"
_BLOCK = 256


class IconEntry(NamedTuple):
    """One picture of the corpus.

    Args:
        id: unique name, ``material-symbols/bell-outline``.
        words: object shown, ``bell off``; the same in every version.
        style: words from ``STYLE_WORDS``, ``outline rounded``; may be empty in a user's corpus.
        tags: other names and categories, lower case.
        split: see `splits.py`, or `closed.py` for closed splits.
    """

    id: str
    words: str
    style: str
    tags: tuple[str, ...]
    split: str

    @property
    def set_name(self) -> str:
        """The set: the id's first half."""
        return set_of(self.id)

    @property
    def has_colour(self) -> bool:
        """Whether the picture's channels differ."""
        return has_colour(self.style)


def set_of(entry_id: str) -> str:
    """Return the set of the entry with this id."""
    return entry_id.partition("/")[0]


def has_colour(style: str) -> bool:
    """Whether the channels of pictures in this style differ."""
    return "colour" in style


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Facts about a corpus as a whole.

    Args:
        data_sha256: hash of the whole data.
        num_entries: number of pictures.
        num_of_split: split -> number of pictures.
        packages: npm package with its version -> SHA-256 of its tarball.
        licences: set -> SPDX name.
        titles: set -> its name in captions, for sets that are not bundled.
        authors: set -> author and address, for sets that are not bundled.
    """

    data_sha256: str
    num_entries: int
    num_of_split: Mapping[str, int]
    packages: Mapping[str, str]
    licences: Mapping[str, str]
    titles: Mapping[str, str]
    authors: Mapping[str, str]

    def title(self, set_name: str) -> str:
        """Return a set's name in captions."""
        return self.titles.get(set_name) or title_of(set_name)

    def source(self, set_name: str) -> tuple[str, str, str]:
        """Return a set's npm package with its version, its author and its address; the latter two are "" if
        unknown."""
        style = set_name.removeprefix(EMOJI_SET)
        if set_name not in self.titles and style in STYLE_PACKAGES and style != set_name:
            package = STYLE_PACKAGES[style]
            return f"npm {package.name} {package.version}", *author_and_address(LICENCES[style][1])
        package_name = f"@iconify-json/{set_name}"
        specs = [spec for spec in self.packages if spec.startswith(f"{package_name}@")]
        version = "".join(spec.removeprefix(package_name).replace("@", " ") for spec in specs[:1])
        author, address = author_and_address(self.authors.get(set_name, ""))
        if set_name not in self.authors and (known := all_sets().get(set_name)) is not None:
            author, address = known.author, known.url
        return f"npm {package_name}{version}", author, address


class _ManifestForm(TypedDict):
    data_sha256: str
    num_entries: CountOrZero
    num_of_split: dict[str, CountOrZero]
    packages: dict[str, str]
    licences: dict[Annotated[str, Matching(SET_NAME.pattern, "a set's name")], str]
    titles: NotRequired[dict[str, str]]
    authors: NotRequired[dict[str, str]]


class _EntryForm(TypedDict):
    """A line of `entries.jsonl.xz`."""

    id: StoredName
    words: str
    style: str
    tags: list[str]
    split: str


def read_manifest(folder: Path, next_step: str) -> Manifest:
    """Read the manifest in a corpus folder.

    Raises:
        DataError: it can't be read, or is not a manifest.
    """
    path = folder / "manifest.json"
    content = read(path, next_step)
    emoji: dict[str, str] = {
        f"{EMOJI_SET}{style}": licence for style, licence in EMOJI_LICENCES.items()
    }
    try:
        values = parse_json(content, str(path), form=_ManifestForm)
    except DataError as error:
        cause = f"is not the manifest of an icon corpus ({error.cause})"
        raise DataError(str(path), cause, next_step) from error
    return Manifest(
        data_sha256=values["data_sha256"],
        num_entries=values["num_entries"],
        num_of_split=values["num_of_split"],
        packages=values["packages"],
        licences=values["licences"] | (emoji if folder == ASSETS else {}),
        titles=values.get("titles", {}),
        authors=values.get("authors", {}),
    )


class IconEntries(Sequence[IconEntry]):
    """All entries of a corpus in order, stored as one list per field; entries are created on access. Selecting among
    100,000 entries then reads only one or two fields.

    Args:
        ids, words, styles, splits: see `IconEntry`.
        tags: tags of each entry, as JSON.
    """

    def __init__(
        self,
        ids: Sequence[str],
        words: Sequence[str],
        styles: Sequence[str],
        tags: Sequence[str],
        splits: Sequence[str],
    ) -> None:
        self.ids, self.words, self.styles, self.splits = ids, words, styles, splits
        self._tags = tags
        self._made: dict[int, IconEntry] = {}

    @classmethod
    def of(cls, entries: Iterable[IconEntry]) -> IconEntries:
        """Create them from entries."""
        ids, words, styles, tags, splits = tuple(zip(*entries, strict=True)) or ((),) * 5
        return cls(ids, words, styles, [json.dumps(one) for one in tags], splits)

    def with_splits(self, splits: Sequence[str]) -> IconEntries:
        """Return the same entries in other splits."""
        return IconEntries(self.ids, self.words, self.styles, self._tags, splits)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> IconEntry: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[IconEntry, ...]: ...

    def __getitem__(self, index: int | slice) -> IconEntry | tuple[IconEntry, ...]:
        if isinstance(index, slice) or "_all" in vars(self):
            return self._all[index]
        if index not in self._made:
            columns = (self.ids, self.words, self.styles, self._tags, self.splits)
            name, words, style, tags, split = (column[index] for column in columns)
            self._made[index] = IconEntry(name, words, style, tuple(json.loads(tags)), split)
        return self._made[index]

    def untagged(self, index: int) -> IconEntry:
        """Return an entry without its tags, whose parsing takes longer than all else."""
        return IconEntry(
            self.ids[index], self.words[index], self.styles[index], (), self.splits[index]
        )

    def __iter__(self) -> Iterator[IconEntry]:
        return iter(self._all)

    @cached_property
    def _all(self) -> tuple[IconEntry, ...]:
        """All entries, created once, for callers that read them all."""
        one = _once()
        with _no_collection():
            tags = (
                tuple([one(tag, tag) for tag in row])
                for _, _, text in _blocks(self._tags)  # checked when the corpus was read
                for row in json.loads(text)
            )
            columns = zip(self.ids, self.words, self.styles, tags, self.splits, strict=True)
            return tuple(map(IconEntry._make, columns))

    def packed(self) -> bytes | None:
        """Return the columns as one text, which `unpacked` reads a dozen times faster than the corpus file; None if a
        field contains a separator or half of one, or if there is no entry."""
        columns = (self.ids, self.words, self.styles, self._tags, self.splits)
        texts = ["\n".join(column) for column in columns]
        if not len(self) or any("\0" in one or one.count("\n") >= len(self) for one in texts):
            return None
        try:
            return "\0".join(texts).encode()
        except UnicodeEncodeError:
            return None

    @classmethod
    def unpacked(cls, packed: bytes) -> IconEntries | None:
        """Return the entries written by `packed`; None if the bytes are invalid."""
        try:
            columns = [text.split("\n") for text in packed.decode().split("\0")]
        except UnicodeDecodeError:
            return None
        if len(columns) != len(IconEntry._fields) or len({len(one) for one in columns}) > 1:
            return None
        ids, words, styles, tags, splits = columns
        one = _once()
        styles, splits = (list(map(one, column, column)) for column in (styles, splits))
        return cls(ids, words, styles, tags, splits)


def read_entries(folder: Path, manifest: Manifest, next_step: str) -> IconEntries:
    """Read the entries in a corpus folder.

    They are cached under their file's hash, in a form that is fast to read.

    Raises:
        DataError: the file can't be read, is damaged, or does not fit the manifest.
    """
    path = folder / "entries.jsonl.xz"
    packed = read(path, next_step)
    kept = cache_folder("icons") / f"entries-{hashlib.sha256(packed).hexdigest()[:32]}.txt"
    if (found := _kept_entries(kept, manifest)) is not None:
        return found
    # less than two seconds' work, so processes don't wait for each other
    lines = unpack_lines(path, next_step, packed)
    try:
        entries = _entries(lines)
        _check(entries, manifest)
    except ValueError as error:
        cause = f"{error.place} {error.cause}" if isinstance(error, DataError) else error
        raise DataError(str(path), f"the file is damaged ({cause})", next_step) from error
    if len(entries) != manifest.num_entries:
        cause = f"holds {len(entries):,} entries, but the manifest states {manifest.num_entries:,}"
        raise DataError(str(path), cause, next_step)
    if (content := entries.packed()) is not None:
        with suppress(FileError):  # without a cache, they are parsed each time
            write_bytes(kept, content)
    return entries


def _kept_entries(path: Path, manifest: Manifest) -> IconEntries | None:
    """Return the cached entries; None if they are missing or don't match."""
    try:
        with open_regular(path) as file:
            entries = IconEntries.unpacked(file.read())
        if entries is not None:
            _check(entries, manifest)
    except (OSError, ValueError):
        return None
    return entries if entries is not None and len(entries) == manifest.num_entries else None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Context without Python's cyclic garbage collection, which takes most of the time when creating 100,000
    objects without cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, Sequence[str], str]]:
    """Lines as lists, each parsed at once: much faster than one by one, with less memory than all. Yields the index of
    the first, the lines, and their list."""
    for start in range(0, len(lines), _BLOCK):
        block = lines[start : start + _BLOCK]
        yield start, block, f"[{','.join(block)}]"


def _rows(lines: Sequence[str], form: Any) -> Iterator[Any]:
    """Parse lines of a form."""
    for start, block, text in _blocks(lines):
        try:
            yield from parse_json(text, "lines", form=list[form])
        except DataError:
            for number, line in enumerate(block, start + 1):  # which of them it is
                parse_json(line, f"line {number}:", form=form)
            raise


def _once() -> Callable[[str, str], str]:
    """Return a function that maps equal texts to one object."""
    texts: dict[str, str] = {}
    return texts.setdefault


def _entries(lines: Sequence[str]) -> IconEntries:
    with _no_collection():
        rows = [
            IconEntry(row["id"], row["words"], row["style"], tuple(row["tags"]), row["split"])
            for row in _rows(lines, _EntryForm)
        ]
    if len({row.id for row in rows}) < len(rows):
        raise ValueError("an id occurs twice")
    return IconEntries.of(rows)


def _check(entries: IconEntries, manifest: Manifest) -> None:
    """Raise `ValueError` for a set without a licence or an unknown split."""
    sets = dict.fromkeys(map(set_of, entries.ids))
    if unknown := [name for name in sets if name not in manifest.licences]:
        raise ValueError(f"the manifest has no licence for {unknown[0]!r}")
    if unknown := sorted(set(entries.splits).difference(SPLITS)):
        raise ValueError(f"there is no split {unknown[0]!r}")


class IconCorpus:
    """All pictures of the corpus, in a fixed order.

    Args:
        assets: folder of the data files; the package's own by default.
        held_out: "by_name" or "closed": the splits of its entries.

    Raises:
        DataError: a data file is missing or damaged.

    Example:
        >>> corpus = IconCorpus()
        >>> corpus.render(corpus.index("lucide/bell-off"), 64).shape
        (64, 64, 3)
    """

    def __init__(self, assets: Path = ASSETS, held_out: str = "by_name") -> None:
        self._assets, self.held_out = assets, held_out
        self._next_step = REINSTALL if assets == ASSETS else REBUILD
        self.manifest: Manifest = read_manifest(assets, self._next_step)
        read_them = _entries_of if held_out == "by_name" else _closed_entries_of
        self.entries = read_them(assets, self.manifest.data_sha256, self._next_step)
        self._drawings: dict[str, list[str]] = {}

    @property
    def is_bundled(self) -> bool:
        """Whether it is the package's own, not one that a user built."""
        return self._assets == ASSETS

    @property
    def data_sha256(self) -> str:
        """Hash of the whole data, from the manifest."""
        return self.manifest.data_sha256

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.entries)

    def index(self, entry_id: str) -> int:
        """Return the position of the entry with this id, such as ``lucide/bell-off``.

        Raises:
            DataError: no entry has this id.
        """
        if entry_id not in self._indices:
            hint = close_match(entry_id, self._indices)
            raise DataError(
                "icon corpus",
                f"has no picture {entry_id!r}; {hint}",
                "use an id of the form set/name, see `entries`",
            )
        return self._indices[entry_id]

    def licence(self, index: int) -> str:
        """Return the SPDX name of the licence of an entry's drawing."""
        return self.manifest.licences[set_of(self.entries.ids[index])]

    def title(self, index: int) -> str:
        """Return the name of an entry's set in captions."""
        return self.manifest.title(set_of(self.entries.ids[index]))

    def svg(self, index: int) -> str:
        """Return the drawing of an entry as an SVG document.

        Raises:
            DataError: the file of the set's drawings is missing or damaged.
        """
        set_name = self.entries[index].set_name
        if self._assets == ASSETS and set_name.startswith(EMOJI_SET):
            return self._emoji.svg(self._emoji.index(self.entries[index].id[len(EMOJI_SET) :]))
        path = self._assets / f"svg-{set_name}.jsonl.xz"
        if set_name not in self._drawings:
            lines = unpack_lines(path, self._next_step)
            if len(lines) != self._num_of_set[set_name]:
                cause = f"holds {len(lines):,} drawings, not {self._num_of_set[set_name]:,}"
                raise DataError(str(path), cause, self._next_step)
            self._drawings[set_name] = lines
        row = self._rows[index]
        place = f"{path}, line {row + 1}"
        svg: str = parse_json(self._drawings[set_name][row], place, self._next_step, form=str)
        return svg

    def render(self, index: int, size: int) -> NDArray[np.uint8]:
        """Draw one entry on white.

        Args:
            index: position in ``entries``.
            size: side in pixels.

        Returns:
            uint8 array of shape [size, size, 3], RGB; the channels are equal unless the entry has colour.
        """
        picture = render_svg(self.svg(index), size)
        if self.entries[index].has_colour:
            return picture
        return np.repeat(picture.min(2, keepdims=True), 3, axis=2)

    def pictures(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> IconPictures:
        """Draw entries once; later calls map the cached files into memory.

        Args:
            size: side in pixels.
            cache_dir: folder of renderings; by default ``CM3_CACHE`` or, if unset, the user's cache
                folder.
            indices: positions in ``entries``; None: all.
        """
        kinds = self._by_colour(indices)
        files = self._renderings(size, cache_dir, kinds)
        return IconPictures(
            kinds,
            *(
                renderings.load(kind, lambda index: self.render(index, size))
                for kind, renderings in zip(kinds, files, strict=True)
            ),
        )

    def is_rendered(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> bool:
        """Return whether the files of ``pictures`` are cached and complete."""
        kinds = self._by_colour(indices)
        return all(file.exist() for file in self._renderings(size, cache_dir, kinds))

    def _renderings(
        self,
        size: int,
        cache_dir: Path | str | None,
        kinds: tuple[Sequence[int], Sequence[int]],
    ) -> tuple[Renderings, Renderings]:
        """Return the files of grey and of coloured pictures; a file of all has one name, whoever asks for it."""
        grey, coloured = kinds
        all_grey, all_coloured = self._num_by_colour

        def file(name: str, kind: Sequence[int], number: int, *channels: int) -> Renderings:
            names = None if len(kind) == number else [self.entries.ids[index] for index in kind]
            shape = (len(kind), size, size, *channels)
            return Renderings(name, self.data_sha256, shape, cache_dir, names)

        return file("icons", grey, all_grey), file("icons-in-colour", coloured, all_coloured, 3)

    @cached_property
    def _num_by_colour(self) -> tuple[int, int]:
        grey, coloured = self._by_colour(None)
        return len(grey), len(coloured)

    def _by_colour(self, indices: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """Return the positions of the grey entries and of the coloured ones, each once and in order."""
        kinds: tuple[list[int], list[int]] = ([], [])
        styles = self.entries.styles
        coloured = {style for style in set(styles) if has_colour(style)}
        for index in range(len(self)) if indices is None else sorted(set(indices)):
            kinds[styles[index] in coloured].append(index)
        return kinds

    @cached_property
    def copies(self) -> Mapping[int, int]:
        """Position of an icon -> position of the first of its copies, for the bundled corpus with closed splits."""
        if self.held_out == "by_name" or self._assets != ASSETS:
            return {}
        return read_copies(ASSETS, self.data_sha256, REINSTALL)

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.entries.ids)}

    @cached_property
    def _rows(self) -> list[int]:
        """Line of each entry in the file of its set's drawings."""
        seen: Counter[str] = Counter()
        rows = []
        for name in self.entries.ids:
            set_name = set_of(name)
            rows.append(seen[set_name])
            seen[set_name] += 1
        return rows

    @cached_property
    def _num_of_set(self) -> Counter[str]:
        return Counter(map(set_of, self.entries.ids))

    @cached_property
    def _emoji(self) -> EmojiCorpus:
        return EmojiCorpus()


@lru_cache(maxsize=2)
def _entries_of(assets: Path, data_sha256: str, next_step: str) -> IconEntries:
    """Read the entries once per process for all splits: they never change for the same hash."""
    return read_entries(assets, read_manifest(assets, next_step), next_step)


@lru_cache(maxsize=2)
def _closed_entries_of(assets: Path, data_sha256: str, next_step: str) -> IconEntries:
    """Return the entries with closed splits: those of the bundled corpus' file; in another corpus, what names and tags
    show of what the bundled one holds out."""
    entries = _entries_of(assets, data_sha256, next_step)
    closed = read_closed(ASSETS, REINSTALL)
    if assets != ASSETS:
        find = closed.held_out.split_by_words
        return entries.with_splits([find(entry.words, entry.tags) for entry in entries])
    if closed.data_sha256 != data_sha256 or len(closed.splits) != len(entries):
        cause = "belongs to other data than the corpus beside it"
        raise DataError(str(assets / CLOSED_FILE), cause, next_step)
    return entries.with_splits(closed.splits)


class IconPictures:
    """Renderings of entries, by their positions in the corpus.

    Args:
        kinds: positions of the grey pictures and of the coloured ones.
        grey_MHW: uint8.
        coloured_KHW3: uint8.
    """

    def __init__(
        self,
        kinds: tuple[Sequence[int], Sequence[int]],
        grey_MHW: NDArray[np.uint8],
        coloured_KHW3: NDArray[np.uint8],
    ) -> None:
        self._grey_MHW, self._coloured_KHW3 = grey_MHW, coloured_KHW3
        self._grey_row, self._coloured_row = (
            {index: row for row, index in enumerate(kind)} for kind in kinds
        )

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Return a copy of an entry's picture, uint8 [H, W, 3]."""
        if index in self._grey_row:
            return np.repeat(self._grey_MHW[self._grey_row[index]][..., None], 3, axis=2)
        return np.array(self._coloured_KHW3[self._coloured_row[index]])
