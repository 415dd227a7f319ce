"""Layouts of published models, whose tokens the framework can write."""
