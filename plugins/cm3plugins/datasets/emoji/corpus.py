"""The bundled corpus: emoji art in five permissive styles with human-written labels and tags, drawn
at any size.

The data files are compressed vector drawings (`assets/`, rebuilt by `build.py`). Entries load immediately;
drawings are unpacked when the first picture is requested, and complete renderings are stored in a cache
folder. Lists of concepts have names, each contained in the next: `starter` (40), `quickstart` (100, in all five
styles), `concrete` (300).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError, close_match
from cm3core.files import user_path
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES
from cm3plugins.datasets.vector.files import read, unpack_lines
from cm3plugins.datasets.vector.render import Renderings
from cm3plugins.svg import render_svg

ASSETS = Path(__file__).parent / "assets"
STYLES = tuple(STYLE_PACKAGES)


@dataclass(frozen=True)
class EmojiEntry:
    """One picture of the corpus.

    Args:
        id: unique name, ``noto/red-apple``.
        concept: concept shown, ``red-apple``; the same in every style.
        label: English name, lower case, ``red apple``.
        tags: keywords, lower case.
        style: one of ``STYLES``.
        category: Unicode group, ``food and drink``.
        split: ``train``, ``comp`` (this style of this concept is held out) or ``unseen`` (the whole
            concept is held out).
    """

    id: str
    concept: str
    label: str
    tags: tuple[str, ...]
    style: str
    category: str
    split: str


class EmojiCorpus:
    """All pictures of the corpus, in a fixed order.

    Args:
        assets: folder of the data files; the package's own by default.

    Raises:
        DataError: a data file is missing or damaged.

    Example:
        >>> corpus = EmojiCorpus()
        >>> corpus.render(corpus.index("noto/red-apple"), 64).shape
        (64, 64, 3)
    """

    def __init__(self, assets: Path = ASSETS) -> None:
        self._assets = assets
        self.manifest: dict[str, Any] = json.loads(read(assets / "manifest.json"))
        self.entries: Sequence[EmojiEntry] = tuple(
            EmojiEntry(**{**fields, "tags": tuple(fields["tags"])})
            for fields in map(json.loads, unpack_lines(assets / "entries.jsonl.xz"))
        )
        self._indices = {entry.id: index for index, entry in enumerate(self.entries)}

    @property
    def data_sha256(self) -> str:
        """Hash of the whole data, from the manifest."""
        return str(self.manifest["data_sha256"])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.entries)

    def index(self, entry_id: str) -> int:
        """Return the position of the entry with this id, such as ``noto/red-apple``.

        Raises:
            DataError: no entry has this id.
        """
        if entry_id not in self._indices:
            hint = close_match(entry_id, self._indices)
            raise DataError(
                "emoji corpus",
                f"has no picture {entry_id!r}; {hint}",
                "use an id of the form style/concept, see `entries`",
            )
        return self._indices[entry_id]

    def svg(self, index: int) -> str:
        """Return the drawing of an entry as an SVG document."""
        return self._drawings[index]

    def render(self, index: int, size: int) -> NDArray[np.uint8]:
        """Draw one entry on white.

        Args:
            index: position in ``entries``.
            size: side in pixels.

        Returns:
            uint8 array of shape [size, size, 3], RGB.
        """
        return render_svg(self.svg(index), size)

    def render_all(self, size: int, cache_dir: Path | str | None = None) -> NDArray[np.uint8]:
        """Draw every entry once; later calls map the cached file into memory.

        Args:
            size: side in pixels.
            cache_dir: folder of renderings; by default ``CM3_CACHE`` or, if unset, the user's cache
                folder.

        Returns:
            read-only memory-mapped uint8 array of shape [num_entries, size, size, 3], RGB on white.
        """
        renderings = self._renderings(size, cache_dir, None)
        return renderings.load(range(len(self)), lambda index: self.render(index, size))

    def render_some(
        self, indices: Sequence[int], size: int, cache_dir: Path | str | None = None
    ) -> NDArray[np.uint8]:
        """Draw some entries once, into a file of their own.

        Args:
            indices: positions in ``entries``.
            size, cache_dir: see `render_all`.

        Returns:
            read-only memory-mapped uint8 array of shape [len(indices), size, size, 3], RGB on white.
        """
        renderings = self._renderings(size, cache_dir, indices)
        return renderings.load(indices, lambda index: self.render(index, size))

    def is_rendered(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> bool:
        """Return whether the file of ``render_all``, or of ``render_some`` for these `indices`, is cached and
        complete (a truncated one is drawn again)."""
        return self._renderings(size, cache_dir, indices).exist()

    def cache_path(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> Path:
        """Return the file used by ``render_all``, or by ``render_some`` for these `indices`: its name
        contains size, data hash, renderer version, and a hash of the entries."""
        return self._renderings(size, cache_dir, indices).path

    def _renderings(
        self, size: int, cache_dir: Path | str | None, indices: Sequence[int] | None
    ) -> Renderings:
        if indices is None or list(indices) == list(range(len(self))):
            number, names = len(self), None
        else:
            number, names = len(indices), [self.entries[index].id for index in indices]
        return Renderings("emoji", self.data_sha256, (number, size, size, 3), cache_dir, names)

    @cached_property
    def _drawings(self) -> tuple[str, ...]:
        unread = {
            style: iter(unpack_lines(self._assets / f"svg-{style}.jsonl.xz"))
            for style in dict.fromkeys(entry.style for entry in self.entries)
        }
        return tuple(json.loads(next(unread[entry.style])) for entry in self.entries)


FOLDER = Path(__file__).parent / "concepts"
ALL = "all"


def list_names() -> tuple[str, ...]:
    """Return the names of the bundled lists."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def read_concepts_file(path: Path, corpus: EmojiCorpus) -> frozenset[str]:
    """Read concepts from a text file: one label or concept per line, `#` starts a comment.

    Args:
        path: the file, UTF-8.
        corpus: corpus that must contain the concepts.

    Returns:
        concepts, as in ``EmojiEntry.concept``.

    Raises:
        DataError: the file can't be read, or names concepts that the corpus lacks.
    """
    known = {entry.label: entry.concept for entry in corpus.entries}
    known |= {entry.concept: entry.concept for entry in corpus.entries}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            str(path),
            f"the list of concepts can't be read ({error})",
            "check the path and the file",
        ) from error
    concepts = set()
    for number, line in enumerate(lines, start=1):
        name = line.partition("#")[0].strip().lower()
        if not name:
            continue
        if name not in known:
            cause = f"the emoji corpus has no concept {name!r}; {_hint(name, known)}"
            raise DataError(
                f"{path}, line {number}", cause, "write one label per line, as in the corpus"
            )
        concepts.add(known[name])
    return frozenset(concepts)


def select_concepts(concepts: str, corpus: EmojiCorpus) -> frozenset[str]:
    """Return the concepts for a recipe's `concepts`.

    Args:
        concepts: "all", the name of a bundled list, or the path of a text file.
        corpus: corpus that must contain them.

    Raises:
        DataError: `concepts` is none of these, or the file is invalid.
    """
    if concepts == ALL:
        return frozenset(entry.concept for entry in corpus.entries)
    if concepts in list_names():
        return read_concepts_file(FOLDER / f"{concepts}.txt", corpus)
    path = user_path(concepts)
    if not path.is_file():
        hint = close_match(concepts, (ALL, *list_names()))
        cause = f"{concepts!r} is neither a list of concepts nor a file; {hint}"
        raise DataError(
            "dataset.concepts",
            cause,
            f"use {ALL}, {', '.join(list_names())}, or the path of a text file",
        )
    return read_concepts_file(path, corpus)


def _hint(name: str, known: dict[str, str]) -> str:
    hint = close_match(name, known)
    return hint if hint.startswith("did") else f"it has {len(set(known.values()))} others"
