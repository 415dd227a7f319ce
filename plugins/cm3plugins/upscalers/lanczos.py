"""`lanczos`: Pillow's windowed sinc. Nothing is learned: the baseline for other upscalers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cm3core.document import PixelArray
from cm3core.interfaces.component import check_value
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig


@dataclass(kw_only=True)
class LanczosUpscalerConfig(UpscalerConfig):
    """Lanczos resampling (a = 3).

    Args:
        scale: upscaling factor per side.
    """

    scale: int = 4

    def check(self) -> None:
        """Raise `RecipeError` for a scale below 1."""
        check_value(
            "upscaler.scale",
            self.scale,
            self.scale >= 1,
            "correct it in the recipe",
            must_be="at least 1",
        )

    def build(self) -> LanczosUpscaler:
        """The upscaler."""
        self.check()
        return LanczosUpscaler(self.scale)


class LanczosUpscaler(Upscaler):
    """Upscales by `scale` with Pillow's LANCZOS."""

    def __init__(self, scale: int) -> None:
        self._scale = scale

    @property
    def scale(self) -> int:
        return self._scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        from cm3core.images import fit

        height, width = pixels_NHWC.shape[1:3]
        return np.stack(
            [
                fit(pixels_HWC, (height * self.scale, width * self.scale))
                for pixels_HWC in pixels_NHWC
            ]
        )
