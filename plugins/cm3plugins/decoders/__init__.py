"""Decoders. Each folder holds a config (`__init__.py`, no torch) and a model."""
