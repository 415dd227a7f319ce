"""The model used when none is named."""

from __future__ import annotations

from typing import Final

#: "PLUGIN:NAME" of a model that a plugin ships.
DEFAULT_MODEL: Final = "bundled:icons64-tuned"
