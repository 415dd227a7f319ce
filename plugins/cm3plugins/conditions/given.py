"""Condition `given`: the picture itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.interfaces.condition import Condition

if TYPE_CHECKING:
    import numpy as np

    from cm3core.document import PixelArray


class GivenPicture(Condition):
    """A copy of the picture."""

    @property
    def fingerprint(self) -> str:
        return "given 1"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        return source.copy()
