"""The core of cm3leon: interfaces, recipes, documents and sequences, and the layer of plugins.

Nothing here imports torch, a plugin or a kernel at module level: `import cm3core` is as fast as
`import json`.

>>> import cm3core
>>> model = cm3core.load("runs/apples")                 # doctest: +SKIP
>>> pictures = model.generate("a red apple", num_images=4, seed=1)   # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cm3core import _moved
from cm3core._version import CM3_API, OLDEST_CM3_API, OUR_DISTRIBUTIONS, __version__

if TYPE_CHECKING:
    from cm3run.model.model import Model, load

__all__ = ["CM3_API", "OLDEST_CM3_API", "Model", "__version__", "load"]

_moved.serve(_moved.MOVED)


def __getattr__(name: str) -> Any:
    """Import the engine's names on first use: it imports torch, and the core does not depend on it."""
    if name in {"Model", "load"}:
        return _engine(name)
    raise AttributeError(f"module 'cm3core' has no attribute {name!r}")


def _engine(name: str) -> Any:
    """Return the object of the entry point with this name; ours, if other distributions have one too."""
    from importlib.metadata import entry_points

    points = entry_points(group="cm3core.engine", name=name)
    for point in sorted(
        points, key=lambda one: one.dist is None or one.dist.name not in OUR_DISTRIBUTIONS
    ):
        return point.load()
    from cm3core.errors import PluginError

    raise PluginError(
        f"cm3core.{name}", "no installed distribution provides it", "install cm3leon again"
    )
