"""The watermark, and the upscaler that uses one."""

from __future__ import annotations

import numpy as np

from cm3_watermark.interface import Watermark
from cm3core.document import PixelArray
from cm3core.interfaces import Upscaler


class Corner(Watermark):
    """See `CornerConfig`."""

    def __init__(self, size: int) -> None:
        self._size = size

    def _mark(self, pixels_HWC: PixelArray) -> PixelArray:
        pixels_HWC[-self._size :, -self._size :] = 255
        return pixels_HWC


class Marked(Upscaler):
    """See `MarkedConfig`."""

    def __init__(self, inner: Upscaler, mark: Watermark) -> None:
        self._inner, self._mark = inner, mark

    @property
    def scale(self) -> int:
        """The inner one's."""
        return self._inner.scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        large_NHWC = self._inner.upscale_batch(pixels_NHWC)
        return np.stack([self._mark.mark(one) for one in large_NHWC])
