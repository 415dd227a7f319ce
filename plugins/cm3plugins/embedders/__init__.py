"""Bundled embedders. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.embedders.bi_encoder import BiEncoderConfig

__all__ = ["BiEncoderConfig"]
