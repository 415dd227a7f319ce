"""Bundled embedders. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.embedders.clip import CLIPConfig
from cm3plugins.embedders.light_encoder import LightEncoderConfig
from cm3plugins.embedders.minilm import MiniLMConfig

__all__ = ["CLIPConfig", "LightEncoderConfig", "MiniLMConfig"]
