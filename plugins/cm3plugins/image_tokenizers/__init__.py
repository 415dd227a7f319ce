"""Bundled image tokenizers."""
