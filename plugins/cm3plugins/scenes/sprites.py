"""Sprites: the drawings that scenes are composed of, with their alpha.

The bundled emoji, or a user's folder (`cm3plugins.scenes.folder`). Legend: N sprites, S pixels a side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance, SkippedRecord
from cm3plugins.datasets.emoji.corpus import ALL, EmojiCorpus, select_concepts
from cm3plugins.datasets.emoji.source import provenance_of
from cm3plugins.datasets.vector.render import Renderings
from cm3plugins.svg import render_svg

#: Two drawings of a style whose mean squared difference at `TWINS_SIDE` pixels is below this are one to the eye: only the
#: first is used. In units of squared 8-bit steps.
TWINS_BELOW = 450.0
TWINS_SIDE = 16


@dataclass(frozen=True)
class Sprite:
    """A drawing.

    Args:
        concept: what it shows, the same in every style, ``red-apple``.
        label: its name in captions, ``red apple``.
        style: its style, ``noto``.
    """

    concept: str
    label: str
    style: str


class Sprites(ABC):
    """Drawings in a fixed order; no two of a style look the same.

    Args:
        sprites: what they show.
        cache_dir: folder of rendered drawings; None: ``CM3_CACHE`` or, if unset, the user's cache folder.
    """

    #: Records that can't be used.
    skipped: Sequence[SkippedRecord] = ()

    def __init__(self, sprites: Sequence[Sprite], cache_dir: Path | str | None) -> None:
        self._cache_dir = cache_dir
        self.all: Sequence[Sprite] = sprites
        self._rendered: dict[int, npt.NDArray[np.uint8]] = {}

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the collection; a folder's name in the cache."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of everything that determines the drawings."""

    @abstractmethod
    def render(self, index: int, side: int) -> PixelArray:
        """Draw one, uint8 [side, side, 4], RGB and alpha, not multiplied."""

    @abstractmethod
    def provenance(self, index: int) -> Provenance:
        """Licence and source of a drawing."""

    @cached_property
    def styles(self) -> tuple[str, ...]:
        """Their styles, in order of first use."""
        return tuple(dict.fromkeys(sprite.style for sprite in self.all))

    @cached_property
    def usable(self) -> tuple[int, ...]:
        """The drawings that don't look like an earlier one of their style, in order."""
        small = self.pixels(TWINS_SIDE)
        flat = composed(small, (255, 255, 255)).reshape(len(small), -1).astype(np.float32)
        by_style: defaultdict[str, list[int]] = defaultdict(list)
        for index, sprite in enumerate(self.all):
            by_style[sprite.style].append(index)
        kept: list[int] = []
        for own in by_style.values():
            rows = flat[own]
            norms = (rows**2).sum(1)
            near = (norms[:, None] + norms - 2 * rows @ rows.T) / rows.shape[1] < TWINS_BELOW
            # a drawing without a visible pixel looks like the background
            near[:, 0] |= ((rows - 255) ** 2).mean(1) < TWINS_BELOW
            first = np.ones(len(own), bool)
            for place in range(1, len(own)):
                first[place] = not (near[place, :place] & first[:place]).any()
            kept += [index for index, is_first in zip(own, first, strict=True) if is_first]
        return tuple(sorted(kept))

    @cached_property
    def by_name(self) -> Mapping[tuple[str, str], int]:
        """(concept, style) -> the usable drawing."""
        return {(self.all[i].concept, self.all[i].style): i for i in self.usable}

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """Concept -> its name in captions."""
        return {self.all[i].concept: self.all[i].label for i in self.usable}

    def pixels(self, side: int) -> npt.NDArray[np.uint8]:
        """All drawings of a size, uint8 [N, side, side, 4]; rendered once and kept in the cache."""
        if side not in self._rendered:
            shape = (len(self.all), side, side, 4)
            kept = Renderings(self.name, self.sha256, shape, self._cache_dir)
            found = kept.load(range(len(self.all)), lambda index: self.render(index, side))
            self._rendered[side] = found
        return self._rendered[side]


class EmojiSprites(Sprites):
    """The bundled emoji of some styles and concepts.

    Args:
        styles: styles to include.
        concepts: as in the data set `emoji`.
        cache_dir: see `Sprites`.

    Raises:
        DataError: the list of concepts can't be read, or nothing is selected.
    """

    def __init__(
        self, styles: Sequence[str], concepts: str = ALL, cache_dir: Path | str | None = None
    ) -> None:
        self._corpus = EmojiCorpus()
        chosen = select_concepts(concepts, self._corpus)
        entries = self._corpus.entries
        self._indices = [
            index
            for index, entry in enumerate(entries)
            if entry.style in styles and entry.concept in chosen
        ]
        if not self._indices:
            raise DataError(
                "dataset", f"no drawing is in concepts {concepts!r} and styles {styles}", "widen one of them"
            )  # fmt: skip
        super().__init__(
            [Sprite(entries[i].concept, entries[i].label, entries[i].style) for i in self._indices],
            cache_dir,
        )

    @property
    def name(self) -> str:
        return "emoji-sprites"

    @cached_property
    def sha256(self) -> str:
        names = "\n".join(self._corpus.entries[index].id for index in self._indices)
        return hashlib.sha256(f"{self._corpus.data_sha256}\n{names}".encode()).hexdigest()

    def render(self, index: int, side: int) -> PixelArray:
        return render_svg(self._corpus.svg(self._indices[index]), side, background=None)

    def provenance(self, index: int) -> Provenance:
        sprite = self.all[index]
        return replace(provenance_of(sprite.style), title=sprite.concept)


def composed(
    pixels_NHW4: npt.NDArray[np.uint8], background: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Lay drawings on a background, uint8 [N, H, W, 3].

    >>> half = np.array([[[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]]], np.uint8)
    >>> composed(half, (255, 255, 255))[0, 0].tolist()
    [[255, 255, 255], [10, 20, 30], [204, 204, 204]]
    """
    alpha = pixels_NHW4[..., 3:].astype(np.uint16)
    behind = np.array(background, np.uint16)
    # whole numbers, rounded: the same on every machine
    mixed = pixels_NHW4[..., :3].astype(np.uint16) * alpha + behind * (255 - alpha)
    found: npt.NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)
    return found


@cache
def emoji_sprites(styles: tuple[str, ...], concepts: str, cache_dir: str | None) -> EmojiSprites:
    """The sprites of these settings, made once a process."""
    return EmojiSprites(styles, concepts, cache_dir)
