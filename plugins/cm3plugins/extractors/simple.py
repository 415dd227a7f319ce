"""Extractors without a network of their own: pixels of scaled pictures, and the vectors of an embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow

from cm3core.document import PixelArray
from cm3core.interfaces.component import chosen_name
from cm3core.interfaces.embedder import Embedder, EmbedderConfig
from cm3core.interfaces.extractor import Extractor, FeatureArray

#: Weights of a pixel's neighbours in a row, then in a column.
BLUR = (1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9)


class PixelsExtractor(Extractor):
    """Pixels of the scaled picture, 0 to 1, optionally blurred."""

    def __init__(self, side: int, *, blur: bool = False) -> None:
        self._side, self._blur = side, blur

    @property
    def label(self) -> str:
        return f"blurred{self._side}" if self._blur else f"pixels{self._side}"

    @property
    def dimension(self) -> int:
        return 3 * self._side**2

    @property
    def fingerprint(self) -> str:
        return f"pixels 1 {self._side}" + (" blurred" if self._blur else "")

    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        size, how = (self._side, self._side), Pillow.Resampling.BOX
        small = [np.asarray(Pillow.fromarray(one).resize(size, how)) for one in pictures]
        small_NHWC = np.asarray(np.stack(small) / 255, np.float32)
        if self._blur:
            small_NHWC = blurred(small_NHWC)
        return small_NHWC.reshape(len(small), -1)


def blurred(pictures_NHWC: FeatureArray) -> FeatureArray:
    """Blur pictures float32 [N, H, W, C] by `BLUR`; pixels outside the picture count as
    0."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (len(BLUR) // 2,) * 2
        padded = np.pad(pictures_NHWC, padding)
        mixed_NHWC = np.zeros_like(pictures_NHWC)
        for place, weight in enumerate(BLUR):
            window = range(place, place + pictures_NHWC.shape[axis])
            mixed_NHWC += np.float32(weight) * np.take(padded, window, axis=axis)
        pictures_NHWC = mixed_NHWC
    return pictures_NHWC


class EmbedderExtractor(Extractor):
    """Extracts an embedder's unit vectors."""

    def __init__(self, embedder: Embedder, label: str) -> None:
        self._embedder, self._label = embedder, label

    @classmethod
    def of(cls, config: EmbedderConfig) -> EmbedderExtractor:
        """Return the extractor of an embedder's config; its label is the embedder's name in recipes."""
        name = chosen_name(config) or type(config).__name__.removesuffix("Config")
        return cls(config.build(), name.rpartition("/")[2].lower())

    @property
    def label(self) -> str:
        return self._label

    @property
    def dimension(self) -> int:
        return self._embedder.dimension

    @property
    def fingerprint(self) -> str:
        # letters and digits only, whatever the embedder's fingerprint contains
        return hashlib.sha256(f"embedder 1 {self._embedder.fingerprint}".encode()).hexdigest()

    @property
    def embedder_fingerprint(self) -> str:
        """Fingerprint of the embedder."""
        return self._embedder.fingerprint

    @property
    def reads_text(self) -> bool:
        return True

    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        return self._embedder.embed_images(pictures)

    def _extract_texts(self, texts: Sequence[str]) -> FeatureArray:
        return self._embedder.embed_texts(texts)
