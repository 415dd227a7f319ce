"""The engine: trained models, generation, training, checkpoints, memory banks, token shards, tuning.

It builds what a recipe names from the components that plugins provide, and knows none of them by name. `cm3core.load`
opens a model of it.
"""

from __future__ import annotations

from typing import Final

#: The model used when none is named: "PLUGIN:NAME" of a model that a plugin ships.
DEFAULT_MODEL: Final = "bundled:icons64-tuned"
