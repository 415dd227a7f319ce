"""cm3core: the small core of cm3leon. Interfaces, recipes, documents and the two loops (train, generate).

Nothing here imports torch, a plugin or a kernel at module level: `import cm3core` is as fast as `import json`.

>>> import cm3core
>>> model = cm3core.load("runs/apples")                 # doctest: +SKIP
>>> pictures = model.generate("a red apple", num_images=4, seed=1)   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Version of the plugin API. A plugin states the one it was written for in its own `CM3_API`.
CM3_API = 1

#: The oldest plugin API that is still served: plugins of it work, and a line says that they must be updated.
OLDEST_CM3_API = 1

if TYPE_CHECKING:
    from cm3core.model import Model, load

__all__ = ["CM3_API", "OLDEST_CM3_API", "Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the torch-heavy names on first use only."""
    if name in {"Model", "load"}:
        from cm3core import model

        return getattr(model, name)
    raise AttributeError(f"module 'cm3core' has no attribute {name!r}")
