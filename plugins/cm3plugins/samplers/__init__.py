"""Bundled samplers: `top_p` (plain temperature, top-k, top-p) and `cfg` (classifier-free guidance with a plausibility set)."""
