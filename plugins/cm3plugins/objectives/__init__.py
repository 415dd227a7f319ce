"""Bundled masking objectives.

`cm3` (causal masking), `fim` (always one span) and `causal` (plain next-token prediction).
"""
