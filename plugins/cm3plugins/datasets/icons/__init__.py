"""The icon corpus: pinned sets, names, splits, pictures, captions, documents, and the command that
builds it."""

from cm3plugins.datasets.icons.config import SPLITS, IconSourceConfig

__all__ = ["SPLITS", "IconSourceConfig"]
