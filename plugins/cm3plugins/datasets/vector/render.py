"""Draws a corpus' pictures once per size and caches them in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cm3core.files import atomic_path, cache_folder
from cm3plugins.svg import renderer_version
from cm3run.built_once import built_once
from cm3run.npy import allocate, load_array
from cm3run.progress import make_bar

_NUM_DIGITS = 16

Render = Callable[[int], NDArray[np.uint8]]
"""Position in the corpus -> uint8 [size, size, 3], RGB."""


class Renderings:
    """The cached file of some pictures of a corpus at one size: an array in .npy format, mapped into memory.

    Args:
        corpus: its name, which is also a folder's name.
        data_sha256: hash of the corpus' data; part of the file name, as is the renderer's version.
        shape: shape of the array: [num_pictures, size, size], grey, or [num_pictures, size, size, 3].
        cache_dir: folder of the files; None: ``CM3_CACHE`` or, if unset, the user's cache folder.
        names: ids of the pictures, if they are not the whole corpus; their hash is part of the file name.
    """

    def __init__(
        self,
        corpus: str,
        data_sha256: str,
        shape: tuple[int, ...],
        cache_dir: Path | str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._corpus, self._shape = corpus, shape
        stem = f"{shape[1]}px-{data_sha256[:_NUM_DIGITS]}-{renderer_version()}"
        if names is not None:
            stem += f"-{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:_NUM_DIGITS]}"
        self.path = cache_folder(corpus, root=cache_dir) / f"{stem}.npy"

    def exist(self) -> bool:
        """Return whether the file exists and is complete (a truncated one is drawn again)."""
        return self._kept(self.path) is not None

    def load(self, indices: Sequence[int], render: Render) -> NDArray[np.uint8]:
        """Return the array, read-only; if it is missing, one process draws it first.

        Args:
            indices: the pictures, as arguments of `render`; a grey array holds their first channel.
            render: draws one picture.
        """
        title = f"drawing {self._corpus} at {self._shape[1]} px"
        return built_once(
            self.path, title, self._kept, lambda path: self._draw(path, title, indices, render)
        )

    def _kept(self, path: Path) -> NDArray[np.uint8] | None:
        try:
            pictures: NDArray[np.uint8] = load_array(path, memory_map=True)
        except (ValueError, OSError):
            return None
        return pictures if pictures.shape == self._shape else None

    def _draw(self, path: Path, title: str, indices: Sequence[int], render: Render) -> None:
        from numpy.lib.format import open_memmap

        grey = len(self._shape) == 3
        with atomic_path(path) as temporary:
            pictures = open_memmap(temporary, mode="w+", dtype=np.uint8, shape=self._shape)
            with temporary.open("rb+") as file:
                allocate(file.fileno(), pictures.offset, pictures.nbytes)
            for position, index in enumerate(make_bar(indices, desc=title, unit="picture")):
                picture = render(index)
                pictures[position] = picture[..., 0] if grey else picture
            pictures.flush()
