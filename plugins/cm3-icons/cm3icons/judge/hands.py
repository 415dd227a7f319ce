"""A reader of hands: a small network that reads how an icon is drawn as a vector near those of its set's other icons.

It sees the ink as it lies on the page, since weight, margins and corners are what makes a hand. It learned to tell the
hands of `train` of the closed splits, which are pairs of a set and a style, so it has seen no test case. A hand that it
never learned is the mean of its real drawings: a set of four whole ones that are held out, or a user's own.
`assets/things.md` says how it was trained. Legend: N pictures, S side of a picture, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from cm3core.document import PixelArray
from cm3core.files import sha256_file
from cm3icons.judge.reader import Floats, load_reader, read
from cm3run.nearness import ink_of

#: The shipped weights.
WEIGHTS = Path(__file__).parent / "assets" / "hands.safetensors"


class HandReader:
    """Reads how drawings are drawn.

    Args:
        weights: file of the network.
    """

    def __init__(self, weights: Path = WEIGHTS) -> None:
        self._weights = weights
        self._network, self.sizes = load_reader(weights)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return sha256_file(self._weights)[:16]

    def read(self, pictures: Sequence[PixelArray]) -> Floats:
        """Return unit vectors float32 [N, D] of drawings."""
        return read(self._network, [page(one, self.sizes.side) for one in pictures])


def page(picture: PixelArray, side: int) -> NDArray[np.uint8]:
    """Return the ink of a whole picture, uint8 [side, side]."""
    ink = ink_of(picture)
    if ink.shape == (side, side):
        return ink
    return np.asarray(Pillow.fromarray(ink).resize((side, side), Pillow.Resampling.BOX))
