"""Evaluation of trained parts: image tokenizers and upscalers on held-out pictures."""
