"""`lanczos`: Pillow's windowed sinc. Not trained; the baseline for other upscalers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cm3core.document import PixelArray
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig


@dataclass(kw_only=True)
class LanczosUpscalerConfig(UpscalerConfig):
    """Lanczos resampling (a = 3).

    Args:
        scale: upscaling factor per side.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"scale": (1, 64)}

    scale: int = 4

    def build(self) -> LanczosUpscaler:
        """Return the upscaler."""
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
