"""Pictures that look the same, even after scaling or saving them again: a reference picture in the training data or in the
memory makes scores worthless."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3core.document import PixelArray

#: Maximum number of pictures that are compared by appearance, which reads each picture.
MOST_LOOKED_AT = 20_000
_SIDE = 16
#: Maximum root mean square difference of two small versions that look the same, in grey levels (0
#: to 255).
_SAME_LOOK = 4


class Looks:
    """The appearance of the references, as versions of 16 x 16 pixels.

    Args:
        pictures: (key, pixels) of each reference.
    """

    def __init__(self, pictures: Iterable[tuple[str, PixelArray]]) -> None:
        found = [(key, _look(pixels)) for key, pixels in pictures]
        self._keys = [key for key, _ in found]
        self._looks_ND = np.stack([small for _, small in found])
        self._squares_N = (self._looks_ND**2).sum(1)

    def like(self, pixels_HWC: PixelArray) -> str | None:
        """The key of a reference that looks the same, even after scaling or saving it again, or
        None."""
        squared_N = self._squared(pixels_HWC)
        nearest = int(squared_N.argmin())
        return self._keys[nearest] if squared_N[nearest] <= _SAME_LOOK**2 else None

    def all_like(self, pixels_HWC: PixelArray) -> list[str]:
        """The keys of all references that look the same."""
        near = np.flatnonzero(self._squared(pixels_HWC) <= _SAME_LOOK**2)
        return [self._keys[int(place)] for place in near]

    def _squared(self, pixels_HWC: PixelArray) -> NDArray[np.float32]:
        """Mean squared difference from each reference."""
        own_D = _look(pixels_HWC)
        squared_N: NDArray[np.float32] = (
            self._squares_N + own_D @ own_D - 2 * self._looks_ND @ own_D
        ) / len(own_D)
        return squared_N


def _look(pixels_HWC: PixelArray) -> NDArray[np.float32]:
    small = Pillow.fromarray(pixels_HWC).resize((_SIDE, _SIDE), Pillow.Resampling.BOX)
    return np.asarray(small, np.float32).ravel()
