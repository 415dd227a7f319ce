"""Config dataclasses: their schema, the meaning of their keys, and overrides of single keys.
Imports no torch."""
