"""Bundled upscalers. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.upscalers.edsr import EDSRConfig
from cm3plugins.upscalers.external import ExternalUpscalerConfig
from cm3plugins.upscalers.lanczos import LanczosUpscalerConfig

__all__ = ["EDSRConfig", "ExternalUpscalerConfig", "LanczosUpscalerConfig"]
