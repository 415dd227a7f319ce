"""The real icons among which a drawn one is ranked: 100 of the same set and style, compared as blurred pictures of
32 x 32 pixels. Legend: N pictures, D numbers per picture.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3core.document import PixelArray
from cm3core.images import fit

if TYPE_CHECKING:
    from cm3icons.data.corpus import IconCorpus
from cm3icons.data.corpus import IconEntry, IconPictures
from cm3plugins.extractors.simple import PixelsExtractor

NUM_CANDIDATES = 100
JUDGED_SIDE = 32

Floats = NDArray[np.float32]


class RealPictures:
    """Real pictures of the corpus, rendered on demand and cached.

    Args:
        corpus: all icons.
        size: side at which they are rendered, in pixels.
        image_size: (height, width) of the returned pictures.
        cache_dir: the data set's cache folder; a rendering of the whole corpus there is used.
    """

    def __init__(
        self, corpus: IconCorpus, size: int, image_size: tuple[int, int], cache_dir: str | None
    ) -> None:
        self.corpus, self._size, self._image_size = corpus, size, image_size
        self._rendered: IconPictures | None = None
        if corpus.is_rendered(size, cache_dir):
            self._rendered = corpus.pictures(size, cache_dir)
        self._drawn: dict[int, PixelArray] = {}
        self._of_style: dict[tuple[str, str], list[int]] = {}
        for index, entry in enumerate(corpus.entries):
            self._of_style.setdefault((entry.set_name, entry.style), []).append(index)
        self._fixed: dict[tuple[str, str], list[int]] = {}

    def __getitem__(self, index: int) -> PixelArray:
        """The picture of an entry, uint8 [H, W, 3]."""
        if index not in self._drawn:
            pixels = (
                self.corpus.render(index, self._size)
                if self._rendered is None
                else self._rendered[index]
            )
            self._drawn[index] = fit(pixels, self._image_size)
        return self._drawn[index]

    def candidates(self, entry: IconEntry, num: int = NUM_CANDIDATES) -> list[int]:
        """Positions of the entry and then of num - 1 other objects of its set and style, in an order that is
        the same for all entries of that style; of its set alone if the style has too few."""
        key = (entry.set_name, entry.style)
        if key not in self._fixed:
            entries = self.corpus.entries
            own = sorted(self._of_style[key], key=lambda index: order(entries[index].id))
            others = [
                index
                for index, other in enumerate(entries)
                if other.set_name == entry.set_name and other.style != entry.style
            ]
            self._fixed[key] = own + sorted(others, key=lambda index: order(entries[index].id))
        found = [self.corpus.index(entry.id)]
        for index in self._fixed[key]:
            if len(found) == num:
                break
            if self.corpus.entries[index].words != entry.words:
                found.append(index)
        return found


def order(*names: str) -> str:
    """A key that sorts names in a fixed random order.

    >>> sorted(["a", "b", "c"], key=order) == sorted(["c", "b", "a"], key=order)
    True
    """
    return hashlib.sha256("\0".join(names).encode()).hexdigest()


def blurred(pictures_NHWC: PixelArray) -> Floats:
    """Blurred pictures of 32 x 32 pixels, float32 [N, D], 0 to 1."""
    return PixelsExtractor(JUDGED_SIDE, blur=True).extract(list(pictures_NHWC))


def shrunk(pixels: PixelArray) -> PixelArray:
    """The picture at 32 x 32 pixels; each is the mean of the pixels it covers."""
    if pixels.shape[:2] == (JUDGED_SIDE, JUDGED_SIDE):
        return pixels
    return np.asarray(
        Pillow.fromarray(pixels).resize((JUDGED_SIDE,) * 2, Pillow.Resampling.BOX)
    ).copy()
