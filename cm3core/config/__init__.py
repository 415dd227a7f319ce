"""Config dataclasses: schema, documentation of keys, overrides of single keys. Imports no torch."""
