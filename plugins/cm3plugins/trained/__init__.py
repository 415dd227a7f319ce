"""Shared by trained components of all kinds: bundled weights, weights files, training runs."""
