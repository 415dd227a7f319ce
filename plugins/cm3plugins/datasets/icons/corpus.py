"""The bundled icon corpus: some forty permissive sets and the emoji, with names taken apart into words and
styles, drawn at any size.

Entries load at once; a set's drawings are unpacked when the first of them is asked for, and whole renderings are
kept in a cache folder: grey ones and coloured ones apart, since most icons have no colour.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError, close_match
from cm3plugins.datasets.emoji.corpus import EmojiCorpus
from cm3plugins.datasets.icons.entries import (
    REBUILD,
    REINSTALL,
    IconEntries,
    Manifest,
    has_colour,
    read_entries,
    read_manifest,
    set_of,
)
from cm3plugins.datasets.icons.sets import ASSETS, EMOJI_SET
from cm3plugins.datasets.vector.files import unpack_lines
from cm3plugins.datasets.vector.render import render_svg
from cm3plugins.datasets.vector.renderings import Renderings


class IconCorpus:
    """All pictures of the corpus, in a fixed order.

    Args:
        assets: folder of the data files; the package's own by default.

    Raises:
        DataError: a data file is missing or damaged.

    Example:
        >>> corpus = IconCorpus()
        >>> corpus.render(corpus.index("lucide/bell-off"), 64).shape
        (64, 64, 3)
    """

    def __init__(self, assets: Path = ASSETS) -> None:
        self._assets = assets
        self._next_step = REINSTALL if assets == ASSETS else REBUILD
        self.manifest: Manifest = read_manifest(assets, self._next_step)
        self.entries = _entries_of(assets, self.manifest.data_sha256, self._next_step)
        self._drawings: dict[str, list[str]] = {}

    @property
    def data_sha256(self) -> str:
        """Hash of the whole data, as the manifest records it."""
        return self.manifest.data_sha256

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.entries)

    def index(self, entry_id: str) -> int:
        """Return the position of the entry with this id, such as ``lucide/bell-off``.

        Raises:
            DataError: no entry has it.
        """
        if entry_id not in self._indices:
            hint = close_match(entry_id, self._indices)
            raise DataError(
                "icon corpus", f"no picture {entry_id!r}; {hint}", "ids are set/name, see `entries`"
            )
        return self._indices[entry_id]

    def licence(self, index: int) -> str:
        """Return the SPDX name of the licence of an entry's drawing."""
        return self.manifest.licences[set_of(self.entries.ids[index])]

    def title(self, index: int) -> str:
        """Return what captions call an entry's set."""
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
        try:
            svg = json.loads(self._drawings[set_name][row])
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {row + 1}", "the file is damaged", self._next_step
            ) from error
        return str(svg)

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
        """Draw entries, once: later calls map the cached files into memory.

        Args:
            size: side in pixels.
            cache_dir: where renderings are kept; by default ``CM3_CACHE``, else the user's cache
                folder.
            indices: positions in ``entries``; None: all.
        """
        kinds = self._by_colour(indices)
        files = self._renderings(size, cache_dir, kinds, whole=indices is None)
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
        """Say whether ``pictures`` finds its files, whole."""
        kinds, whole = self._by_colour(indices), indices is None
        return all(file.exist() for file in self._renderings(size, cache_dir, kinds, whole=whole))

    def _renderings(
        self,
        size: int,
        cache_dir: Path | str | None,
        kinds: tuple[Sequence[int], Sequence[int]],
        *,
        whole: bool,
    ) -> tuple[Renderings, Renderings]:
        """The files of grey pictures and of coloured ones; `whole`: these are all of the corpus."""
        grey, coloured = kinds

        def file(name: str, kind: Sequence[int], *channels: int) -> Renderings:
            names = None if whole else [self.entries.ids[index] for index in kind]
            shape = (len(kind), size, size, *channels)
            return Renderings(name, self.data_sha256, shape, cache_dir, names)

        return file("icons", grey), file("icons-in-colour", coloured, 3)

    def _by_colour(self, indices: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """Positions of the grey entries, and of the coloured ones."""
        kinds: tuple[list[int], list[int]] = ([], [])
        styles = self.entries.styles
        coloured = {style for style in set(styles) if has_colour(style)}
        for index in range(len(self)) if indices is None else indices:
            kinds[styles[index] in coloured].append(index)
        return kinds

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.entries.ids)}

    @cached_property
    def _rows(self) -> list[int]:
        """Entry -> its line in the file of its set's drawings."""
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
    """A process reads the entries once, not again for every split: they never change under one hash."""
    return read_entries(assets, read_manifest(assets, next_step), next_step)


class IconPictures:
    """Renderings of entries, by their positions in the corpus.

    Args:
        kinds: positions of the grey pictures, and of the coloured ones.
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
        """The picture of an entry: uint8 [H, W, 3], a copy."""
        if index in self._grey_row:
            return np.repeat(self._grey_MHW[self._grey_row[index]][..., None], 3, axis=2)
        return np.array(self._coloured_KHW3[self._coloured_row[index]])
