"""From a model's name to its folder: a path, a model that a plugin ships, or one on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError, close_match
from cm3run import DEFAULT_MODEL
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


def model_name(model: str | Path, registry: Registry) -> str:
    """A model's name as it was given; that of the default model, which depends on the installed plugins, in full."""
    if model != DEFAULT_MODEL:
        return str(model)
    offered = [
        (rank, f"{info.name}:{name}")
        for info in registry.plugins
        if info.status == "loaded"
        for name, rank in info.default_models.items()
    ]
    if not offered:
        raise CheckpointError(
            "--model", "is needed: no plugin in use offers a default one", "name a model"
        )
    return max(offered)[1]


def find_model(model: str | Path, registry: Registry) -> Path:
    """The folder of a model: a path (a run, a checkpoint, an exported model), "PLUGIN:NAME" for a model that a plugin
    ships, or "hf://USER/NAME[@REVISION]" for one on the Hugging Face Hub, which is downloaded first.

    Raises:
        CheckpointError: no plugin ships it, or it can't be downloaded.
    """
    if is_address(model):
        from cm3run.checkpoint.hub_models import download_model  # imports torch

        return download_model(model)
    model = model_name(model, registry)
    shipped = bundled_models(registry)
    if (name := _present_name(str(model), registry)) in shipped:
        return shipped[name]
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
    if (name := _present_name(model_name(model, registry), registry)) in registry.models():
        return name
    if is_address(model):
        return str(repo_of(model, kind="model").at(find_model(model, registry)))
    return str(Path(model).absolute())


def _present_name(model: str, registry: Registry) -> str:
    """ "PLUGIN:NAME" of a model that moved to another distribution (`CM3_BESIDE`), where it is now; other names as they are.

    Raises:
        CheckpointError: it moved to a distribution that is not in use.
    """
    from cm3core._version import how_to_install
    from cm3core.plugins.registry import moved_to

    plugin, _, name = model.partition(":")
    # of a plugin that is not there, the name may be the present one
    own = [one for one in registry.plugins if one.name == plugin]
    distribution = moved_to(own or registry.plugins, "model", name)
    if model in registry.models() or not distribution:
        return model
    for info in registry.plugins:
        if info.distribution == distribution and f"{info.name}:{name}" in registry.models():
            return f"{info.name}:{name}" if own else model
    raise CheckpointError(
        f"model {model!r}",
        f"is in the distribution {distribution}, which is not installed or not in use",
        how_to_install(distribution),
    )
