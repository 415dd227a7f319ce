"""Bundled rerankers. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.rerankers.config import (
    ClipRerankerConfig,
    LikelihoodRerankerConfig,
    PMIRerankerConfig,
)

__all__ = ["ClipRerankerConfig", "LikelihoodRerankerConfig", "PMIRerankerConfig"]
