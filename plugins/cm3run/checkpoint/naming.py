"""From a model's name to its folder: a path, a model that a plugin ships, or one on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError, close_match
from cm3run.checkpoint.hub_models import download_model
from cm3run.hub import is_address, repo_of

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
    """The folder of a model: a path (a run, a checkpoint, an exported model), "PLUGIN:NAME" for a model that a plugin
    ships, or "hf://USER/NAME[@REVISION]" for one on the Hugging Face Hub, which is downloaded first.

    Raises:
        CheckpointError: no plugin ships it, or it can't be downloaded.
    """
    if is_address(model):
        return download_model(model)
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


def lasting_name(model: str | Path, registry: Registry) -> str:
    """The name of a model that means the same from every folder and later: "PLUGIN:NAME", a repository of the Hub with
    its commit, or an absolute path."""
    if str(model) in registry.models():
        return str(model)
    if is_address(model):
        return str(repo_of(model, kind="model").at(find_model(model, registry)))
    return str(Path(model).absolute())
