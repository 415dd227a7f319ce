"""Bundled masking objectives: `cm3` (causal masking), `fim` (one span, always) and `causal` (plain
next token)."""
