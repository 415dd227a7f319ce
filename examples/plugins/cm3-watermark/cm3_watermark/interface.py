"""Kind `watermark`: a picture -> the same picture with a mark in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3core.interfaces import ComponentConfig


@dataclass(kw_only=True)
class WatermarkConfig(ComponentConfig):
    """Base of watermarks' configs."""

    kind: ClassVar[str] = "watermark"

    def build(self) -> Watermark:
        """Return the watermark."""
        raise NotImplementedError


class Watermark(ABC):
    """Puts a mark into pictures."""

    def mark(self, pixels_HWC: PixelArray) -> PixelArray:
        """Return the picture uint8 [H, W, 3] with the mark; the one given is not changed.

        Raises:
            DataError: no such picture.
        """
        if pixels_HWC.dtype != "uint8" or pixels_HWC.ndim != 3:
            raise DataError("picture", "is not uint8 [H, W, 3]", "use cm3core.images.open_image")
        return self._mark(pixels_HWC.copy())

    @abstractmethod
    def _mark(self, pixels_HWC: PixelArray) -> PixelArray:
        """Return the same array, marked."""
