"""Layouts of published models."""
