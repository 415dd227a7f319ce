"""Evaluation: protocols and their hashes, cached features; quality of image tokenizers and upscalers."""
