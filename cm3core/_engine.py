"""The way from the core into the engine, which imports torch: entry points, resolved when they are used."""

from __future__ import annotations

from typing import Any

from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.errors import PluginError


def engine(name: str) -> Any:
    """Return the object of the entry point `cm3core.engine` with this name; ours, if other distributions have one too.

    Raises:
        PluginError: no installed distribution provides it.
    """
    from importlib.metadata import entry_points

    points = entry_points(group="cm3core.engine", name=name)
    for point in sorted(
        points, key=lambda one: one.dist is None or one.dist.name not in OUR_DISTRIBUTIONS
    ):
        return point.load()
    raise PluginError(
        f"cm3core.{name}", "no installed distribution provides it", "install cm3leon again"
    )
