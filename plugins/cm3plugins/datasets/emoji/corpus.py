"""The bundled corpus: emoji art in five permissive styles with human-written labels and tags, drawn
at any size.

The data files are compressed vector drawings (`assets/`, rebuilt by ``build.py``). Entries load at
once; drawings are unpacked when the first picture is asked for, and whole renderings are kept in a
cache folder.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3core.errors import DataError, close_match
from cm3core.files import allocate, atomic_path, cache_directory, user_path
from cm3core.npy import load_array
from cm3plugins.datasets.emoji.packages import STYLE_PACKAGES

ASSETS = Path(__file__).parent / "assets"
STYLES = tuple(STYLE_PACKAGES)

_NUM_DIGITS = 16


@dataclass(frozen=True)
class EmojiEntry:
    """One picture of the corpus.

    Args:
        id: unique name, ``noto/red-apple``.
        concept: what it shows, ``red-apple``; the same in every style.
        label: English name, lower case, ``red apple``.
        tags: keywords, lower case.
        style: one of ``STYLES``.
        category: Unicode group, ``food and drink``.
        split: ``train``, ``comp`` (this style of this concept is held out) or ``unseen`` (the
            concept is).
    """

    id: str
    concept: str
    label: str
    tags: tuple[str, ...]
    style: str
    category: str
    split: str


def data_hash(files: Mapping[str, bytes]) -> str:
    """Return one hexadecimal SHA-256 over the contents of all compressed files (independent of the
    compressor)."""
    total = hashlib.sha256()
    for name in sorted(name for name in files if name.endswith(".xz")):
        total.update(name.encode() + b"\0" + hashlib.sha256(lzma.decompress(files[name])).digest())
    return total.hexdigest()


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
        self.manifest: dict[str, Any] = json.loads(self._read("manifest.json"))
        self.entries: Sequence[EmojiEntry] = tuple(
            EmojiEntry(**{**fields, "tags": tuple(fields["tags"])})
            for fields in map(json.loads, self._unpack("entries.jsonl.xz").rstrip("\n").split("\n"))
        )
        self._indices = {entry.id: index for index, entry in enumerate(self.entries)}

    @property
    def data_sha256(self) -> str:
        """Hash of the whole data, as the manifest records it."""
        return str(self.manifest["data_sha256"])

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.entries)

    def index(self, entry_id: str) -> int:
        """Return the position of the entry with this id, such as ``noto/red-apple``.

        Raises:
            DataError: no entry has it.
        """
        if entry_id not in self._indices:
            hint = close_match(entry_id, self._indices)
            raise DataError(
                "emoji corpus",
                f"no picture {entry_id!r}; {hint}",
                "ids are style/concept, see `entries`",
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
        from cm3plugins.datasets.emoji.render import render_svg

        return render_svg(self.svg(index), size)

    def render_all(self, size: int, cache_dir: Path | str | None = None) -> NDArray[np.uint8]:
        """Draw every entry, once: later calls map the cached file into memory.

        Args:
            size: side in pixels.
            cache_dir: where renderings are kept; by default ``CM3_CACHE``, else the user's cache
                folder.

        Returns:
            read-only memory-mapped uint8 array of shape [num_entries, size, size, 3], RGB on white.
        """
        return self._rendered(self.cache_path(size, cache_dir), range(len(self)), size)

    def render_some(
        self, indices: Sequence[int], size: int, cache_dir: Path | str | None = None
    ) -> NDArray[np.uint8]:
        """Draw some entries, once, into a file of their own.

        Args:
            indices: positions in ``entries``.
            size, cache_dir: see `render_all`.

        Returns:
            read-only memory-mapped uint8 array of shape [len(indices), size, size, 3], RGB on white.
        """
        return self._rendered(self.cache_path(size, cache_dir, indices), indices, size)

    def is_rendered(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> bool:
        """Say whether ``render_all``, or ``render_some`` for these `indices`, finds its file, whole
        (one that was cut is drawn again)."""
        number = len(self) if indices is None else len(indices)
        return self._kept(self.cache_path(size, cache_dir, indices), number, size) is not None

    def cache_path(
        self,
        size: int,
        cache_dir: Path | str | None = None,
        indices: Sequence[int] | None = None,
    ) -> Path:
        """Return the file that ``render_all``, or ``render_some`` for these `indices`, keeps: its
        name holds size, data hash, renderer version, and a hash of the entries."""
        from cm3plugins.datasets.emoji.render import renderer_version

        folder = cache_directory() if cache_dir is None else user_path(cache_dir)
        stem = f"{size}px-{self.data_sha256[:_NUM_DIGITS]}-{renderer_version()}"
        if indices is not None:
            names = "\n".join(self.entries[index].id for index in indices)
            stem += f"-{hashlib.sha256(names.encode()).hexdigest()[:_NUM_DIGITS]}"
        return folder / "emoji" / f"{stem}.npy"

    def _rendered(self, path: Path, indices: Sequence[int], size: int) -> NDArray[np.uint8]:
        """The pictures of a file, which is drawn if it is not there."""
        kept = self._kept(path, len(indices), size)
        if kept is None:
            self._render_to(path, indices, size)
            kept = load_array(path, memory_map=True)
        return kept

    def _kept(self, path: Path, number: int, size: int) -> NDArray[np.uint8] | None:
        try:
            pictures: NDArray[np.uint8] = load_array(path, memory_map=True)
        except (ValueError, OSError):
            return None
        return pictures if pictures.shape == (number, size, size, 3) else None

    def _render_to(self, path: Path, indices: Sequence[int], size: int) -> None:
        from numpy.lib.format import open_memmap

        from cm3core.progress import make_bar

        with atomic_path(path) as temporary:
            shape = (len(indices), size, size, 3)
            pictures = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            with temporary.open("rb+") as file:
                allocate(file.fileno(), pictures.offset, pictures.nbytes)
            for row, index in enumerate(
                make_bar(indices, desc=f"drawing emoji at {size} px", unit="picture")
            ):
                pictures[row] = self.render(index, size)
            pictures.flush()

    @cached_property
    def _drawings(self) -> tuple[str, ...]:
        unread = {
            style: iter(self._unpack(f"svg-{style}.jsonl.xz").rstrip("\n").split("\n"))
            for style in dict.fromkeys(entry.style for entry in self.entries)
        }
        return tuple(json.loads(next(unread[entry.style])) for entry in self.entries)

    def _unpack(self, name: str) -> str:
        data = self._read(name)
        try:
            return lzma.decompress(data).decode()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise DataError(
                str(self._assets / name), f"the file is damaged ({error})", "reinstall cm3leon"
            ) from error

    def _read(self, name: str) -> bytes:
        try:
            return (self._assets / name).read_bytes()
        except OSError as error:
            place = str(self._assets / name)
            raise DataError(
                place, f"the file can't be read ({error.strerror})", "reinstall cm3leon"
            ) from error
