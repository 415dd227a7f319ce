"""The engine: trained models, generation, training, checkpoints, memory banks, token shards, tuning.

It builds the components that a recipe names and plugins provide, without depending on any particular one.
`cm3core.load` opens a model of it.
"""

from __future__ import annotations

from typing import Final

#: The model that is opened if none is named: the one that a plugin in use offers with the highest rank (its
#: `CM3_DEFAULT_MODELS`).
DEFAULT_MODEL: Final = "bundled:default"
