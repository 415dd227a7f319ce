"""What corpora of vector drawings share: compressed files of them, their rendering and its cache."""

from __future__ import annotations
