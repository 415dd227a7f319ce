"""Shared by corpora of vector drawings: compressed files, rendering and its cache, captions."""

from __future__ import annotations
