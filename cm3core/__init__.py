"""The core of cm3leon: interfaces, recipes, documents and sequences, and the layer of plugins.

Nothing here imports torch, a plugin or a kernel at module level: `import cm3core` is as fast as
`import json`.

>>> import cm3core
>>> model = cm3core.load("runs/apples")                 # doctest: +SKIP
>>> pictures = model.generate("a red apple", num_images=4, seed=1)   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cm3core._engine import engine
from cm3core._version import CM3_API, OLDEST_CM3_API, __version__

if TYPE_CHECKING:
    from cm3run.model.model import Model, load

__all__ = ["CM3_API", "OLDEST_CM3_API", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the engine's names on first use."""
    if name in {"Model", "load"}:
        return engine(name)
    raise AttributeError(f"module 'cm3core' has no attribute {name!r}")
