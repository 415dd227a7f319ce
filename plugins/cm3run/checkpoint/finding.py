"""From a model's name to its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError, close_match

if TYPE_CHECKING:
    from cm3core.plugins.registry import Registry


def bundled_models(registry: Registry | None = None) -> dict[str, Path]:
    """Model folders that the installed plugins ship: "PLUGIN:NAME" -> folder. None: the installed
    plugins' registry."""
    if registry is None:
        from cm3core.plugins.discovery import load_registry

        registry = load_registry()
    return registry.models()


def find_model(model: str | Path, registry: Registry) -> Path:
    """The folder of a model: a path (a run, a checkpoint, an exported model), or "PLUGIN:NAME" of a
    model that a plugin ships."""
    shipped = bundled_models(registry)
    if str(model) in shipped:
        return shipped[str(model)]
    if re.fullmatch(r"[\w-]+:[\w.-]+", str(model)) and not Path(model).exists():
        step = (
            close_match(str(model), shipped)
            if shipped
            else "train one (cm3 quickstart, cm3 train) and name its folder"
        )
        raise CheckpointError(f"model {str(model)!r}", "no installed plugin ships it", step)
    return Path(model)
