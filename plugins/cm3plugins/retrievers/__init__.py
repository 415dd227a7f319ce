"""Bundled retrievers. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.none import NoRetrieverConfig

__all__ = ["DenseRetrieverConfig", "NoRetrieverConfig"]
