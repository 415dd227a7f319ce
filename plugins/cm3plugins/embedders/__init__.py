"""Bundled embedders. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.embedders.bi_encoder.config import BiEncoderConfig
from cm3plugins.embedders.clip.config import CLIPConfig
from cm3plugins.embedders.light_encoder.config import LightEncoderConfig

__all__ = ["BiEncoderConfig", "CLIPConfig", "LightEncoderConfig"]
