"""Sprites: the drawings that scenes are composed of, with their alpha.

The bundled emoji, or a user's folder (`cm3plugins.scenes.folder`). Legend: N sprites, S pixels a side.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from einops import reduce

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces.dataset import Provenance, SkippedRecord
from cm3plugins.datasets.emoji.corpus import ALL, EmojiCorpus, select_concepts
from cm3plugins.datasets.emoji.source import provenance_of
from cm3plugins.datasets.vector.render import Renderings
from cm3plugins.svg import render_svg

#: Two drawings whose mean squared difference at `TWINS_SIDE` pixels is below this are one to the eye: only the first is used.
#: In squared 8-bit steps.
TWINS_BELOW = 700.0
TWINS_SIDE = 16
#: Drawings that are compared with all others at once.
_AT_ONCE = 1024


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
    """Drawings in a fixed order; no two usable ones look the same.

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
        """The drawings that don't look like an earlier one, or like nothing, in order."""
        small = composed(self.pixels(TWINS_SIDE), (255, 255, 255)).astype(np.float32)
        flat = small.reshape(len(small), -1)
        # means of 2 x 2 pixels are at most as far apart as the pixels, and leave few pairs to compare
        means = reduce(small, "N (Y y) (X x) C -> N (Y X C)", "mean", y=2, x=2)
        norms = (means**2).sum(1)
        kept = ((flat - 255) ** 2).mean(1) >= TWINS_BELOW
        for start in range(0, len(flat), _AT_ONCE):
            own = means[start : start + _AT_ONCE]
            until = start + len(own)
            far = norms[start:until, None] + norms[:until] - 2 * own @ means[:until].T
            near = (far < TWINS_BELOW * means.shape[1]) & kept[:until]
            for index in range(start, until):
                others = np.flatnonzero(near[index - start, :index] & kept[:index])
                apart = ((flat[others] - flat[index]) ** 2).mean(1)
                kept[index] &= bool((apart >= TWINS_BELOW).all())
        return tuple(np.flatnonzero(kept).tolist())

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
                "dataset",
                f"no drawing is in concepts {concepts!r} and styles {styles}",
                "widen one of them",
            )
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
