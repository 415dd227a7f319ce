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
        path = self.cache_path(size, cache_dir)
        if not self.is_rendered(size, cache_dir):
            self._render_to(path, (len(self), size, size, 3))
        pictures: NDArray[np.uint8] = load_array(path, memory_map=True)
        return pictures

    def is_rendered(self, size: int, cache_dir: Path | str | None = None) -> bool:
        """Say whether ``render_all`` finds its file, whole (one that was cut is drawn again)."""
        try:
            pictures = load_array(self.cache_path(size, cache_dir), memory_map=True)
        except (ValueError, OSError):
            return False
        return bool(pictures.shape == (len(self), size, size, 3))

    def cache_path(self, size: int, cache_dir: Path | str | None = None) -> Path:
        """Return the file that ``render_all`` keeps: its name holds size, data hash and renderer
        version."""
        from cm3plugins.datasets.emoji.render import renderer_version

        folder = cache_directory() if cache_dir is None else user_path(cache_dir)
        return (
            folder / "emoji" / f"{size}px-{self.data_sha256[:_NUM_DIGITS]}-{renderer_version()}.npy"
        )

    def _render_to(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        from numpy.lib.format import open_memmap
        from tqdm import tqdm

        with atomic_path(path) as temporary:
            pictures = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            with temporary.open("rb+") as file:
                allocate(file.fileno(), pictures.offset, pictures.nbytes)
            for index in tqdm(
                range(len(self)), desc=f"drawing the emoji corpus at {shape[1]} px", unit="picture"
            ):
                pictures[index] = self.render(index, shape[1])
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
