"""A kind of component for cm3leon, `watermark`; one watermark; and an upscaler that uses any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from cm3_watermark.interface import Watermark, WatermarkConfig
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import Upscaler, UpscalerConfig
from cm3core.plugins import Kind

CM3_API = 1


@dataclass(kw_only=True)
class CornerConfig(WatermarkConfig):
    """A white square in the lower right corner.

    Args:
        size: pixels a side.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"size": (1, 4096)}
    size: int = 2

    def build(self) -> Watermark:
        """Nothing is loaded."""
        from cm3_watermark.marks import Corner

        return Corner(self.size)


@dataclass(kw_only=True)
class MarkedConfig(UpscalerConfig):
    """Enlarges by another upscaler, and marks what it made.

    Args:
        inner: the upscaler.
        mark: the watermark.
    """

    inner: UpscalerConfig
    mark: WatermarkConfig

    def build(self) -> Upscaler:
        """Both are built by their own configs."""
        from cm3_watermark.marks import Marked

        return Marked(self.inner.build(), self.mark.build())


@hookimpl
def cm3_kinds() -> Sequence[Kind]:
    return [
        Kind(
            hook="cm3_watermarks",
            config=WatermarkConfig,
            interface="Watermark",
            kit="cm3_watermark.testing:WatermarkContract",
            words="watermark",
            summary="Watermarks: a picture -> the same with a mark in it",
        )
    ]


@hookimpl
def cm3_watermarks() -> Mapping[str, type[WatermarkConfig]]:
    return {"corner": CornerConfig}


@hookimpl
def cm3_upscalers() -> Mapping[str, type[UpscalerConfig]]:
    return {"marked": MarkedConfig}
