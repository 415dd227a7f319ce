"""Codes of pictures that a model drew in replies, so that later turns read these and not what their
pixels are encoded to."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from threading import Lock

import numpy as np

from cm3core.document import PixelArray
from cm3run.model.turns import ReplyPicture

#: Pictures whose codes are remembered; each takes a few KB.
MOST_DRAWN = 1024


class DrawnPictures:
    """The last pictures of replies, by their pixels. Nothing of them is kept but codes, seed and
    log-probability. Any thread may use it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, ReplyPicture] = OrderedDict()
        self._lock = Lock()

    def remember(self, model: str, picture: ReplyPicture) -> None:
        """Note a picture that `model` drew."""
        empty = np.zeros((0, 0, 3), np.uint8)
        facts = picture.codes, picture.seed, picture.log_probability
        with self._lock:
            self._kept[_key(model, picture.pixels)] = ReplyPicture(empty, *facts)
            while len(self._kept) > MOST_DRAWN:
                self._kept.popitem(last=False)

    def find(self, model: str, pixels: PixelArray) -> PixelArray | ReplyPicture:
        """The picture as `model` drew it; the pixels themselves where it did not, or long ago."""
        with self._lock:
            found = self._kept.get(_key(model, pixels))
        if found is None:
            return pixels
        return ReplyPicture(pixels, found.codes, found.seed, found.log_probability)


def _key(model: str, pixels: PixelArray) -> bytes:
    digest = hashlib.sha256(f"{model} {pixels.shape} ".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.digest()
