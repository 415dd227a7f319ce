"""Condition `as_is`: the picture itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.interfaces.condition import Condition

if TYPE_CHECKING:
    import numpy as np

    from cm3core.document import PixelArray


class PictureAsItIs(Condition):
    """A copy of the picture."""

    @property
    def fingerprint(self) -> str:
        return "as_is 1"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        return source.copy()
