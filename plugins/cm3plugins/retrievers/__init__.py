"""Bundled retrievers. Their configs import nothing heavy."""

from __future__ import annotations

from cm3plugins.retrievers.bm25 import BM25RetrieverConfig
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.hybrid import HybridRetrieverConfig
from cm3plugins.retrievers.none import NoRetrieverConfig
from cm3plugins.retrievers.random import RandomRetrieverConfig
from cm3plugins.retrievers.usearch import UsearchRetrieverConfig

__all__ = [
    "BM25RetrieverConfig",
    "DenseRetrieverConfig",
    "HybridRetrieverConfig",
    "NoRetrieverConfig",
    "RandomRetrieverConfig",
    "UsearchRetrieverConfig",
]
