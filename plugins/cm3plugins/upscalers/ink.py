"""`ink`: drawings in black, and in one grey besides, drawn large as the areas of their ink."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cm3core.document import PixelArray
from cm3core.interfaces.upscaler import Upscaler, UpscalerConfig
from cm3plugins.upscalers.lanczos import LanczosUpscalerConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cm3run.grey import Ink, InkAreas


@dataclass(kw_only=True)
class InkUpscalerConfig(UpscalerConfig):
    """Sharp areas of ink: of a drawing in black, or in black and one grey, what `--svg` traces.

    White is white afterwards, black black and grey one grey; noise that a decoder left in them is gone. Pictures of
    other kinds, in colour or with many greys, stay as another upscaler enlarges them.

    Args:
        otherwise: enlarges all pictures, before the edges of ink are made sharp; the scale is its own.
    """

    otherwise: UpscalerConfig = field(default_factory=LanczosUpscalerConfig)

    def build(self) -> InkUpscaler:
        """The upscaler, and the other one with its weights."""
        self.check()
        return InkUpscaler(self.otherwise.build())


class InkUpscaler(Upscaler):
    """Sharpens drawings in ink that `otherwise` has enlarged."""

    def __init__(self, otherwise: Upscaler) -> None:
        self.otherwise = otherwise

    @property
    def scale(self) -> int:
        return self.otherwise.scale

    def _upscale(self, pixels_NHWC: PixelArray) -> PixelArray:
        return np.stack([self._one(pixels_HWC) for pixels_HWC in pixels_NHWC])

    def _one(self, pixels_HWC: PixelArray) -> PixelArray:
        from cm3run.grey import ink_areas, ink_of

        large = self.otherwise.upscale(pixels_HWC)
        if self.scale == 1 or (ink := ink_of(pixels_HWC)) is None:
            return large
        return _drawn(ink, ink_areas(large, ink, self.scale))


def _drawn(ink: Ink, areas: InkAreas) -> PixelArray:
    """The areas in their greys, uint8 [height, width, 3]; edges are a pixel wide."""
    from cm3run.grey import FULL

    full = 1.0 if ink.full >= FULL else ink.full
    covered = _covered(areas.dark, areas.full_from)
    dark = ink.grey * _covered(areas.dark, areas.grey_from) * (1 - covered) + full * covered
    return np.repeat(np.rint(255 * (1 - dark)).astype(np.uint8)[:, :, None], 3, axis=2)


def _covered(dark: NDArray[np.float64], above: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each pixel, 0..1, that is darker than a threshold: its distance from the edge, by the slope there."""
    slope = np.hypot(*np.gradient(dark))
    covered: NDArray[np.float64] = np.clip((dark - above) / np.maximum(slope, 1e-3) + 0.5, 0, 1)
    return covered
