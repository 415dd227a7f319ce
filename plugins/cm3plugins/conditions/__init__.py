"""Conditions: pictures of structures, drawn from pictures (extra `conditions`: opencv) or from boxes."""
