"""Data set `tokens`: token shards, as `cm3 data encode` writes them, from a folder or an object store."""

from cm3plugins.datasets.tokens.config import TokensSourceConfig

__all__ = ["TokensSourceConfig"]
