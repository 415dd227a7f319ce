"""The engine: trained models, generation, training, checkpoints, memory banks, token shards, tuning.

It builds the components that a recipe names and plugins provide, without depending on any particular one.
`cm3core.load` opens a model of it.
"""

from __future__ import annotations

from typing import Final

#: The default model: "PLUGIN:NAME" of a model that a plugin ships.
DEFAULT_MODEL: Final = "bundled:icons64-tuned"
#: The default model of `cm3 complete`.
COMPLETING_MODEL: Final = "bundled:icons64-hands"
