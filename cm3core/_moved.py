"""Public modules under their earlier names, so that plugins written for them keep working.

Importing one returns a module that forwards to the new one, and warns. docs/plugins/stability.md
states how long these names are kept.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # importing them takes half as long as `import cm3core`
    Loader = MetaPathFinder = object

#: Earlier name -> current place of its public names. A package's modules have moved with it.
MOVED = {
    "cm3core.aio": "cm3run.model",
    "cm3core.grey": "cm3plugins.icons.ink",
    "cm3core.infill": "cm3core.sequence",
    "cm3core.kinds": "cm3core.plugins",
    "cm3core.likelihood": "cm3run.generation",
    "cm3core.results": "cm3run.model",
    "cm3core.sampling": "cm3run.generation",
    "cm3core.train": "cm3run.training",
    **{
        f"cm3core.{name}": f"cm3run.{name}"
        for name in (
            *("attribution", "bank", "bank_tools", "build", "checkpoint", "devices", "evaluation"),
            *("faults", "json_text", "printing", "progress"),
            *("generation", "machine_memory", "mapped", "model", "nearness", "npy"),
            *("prepending", "processes", "stop_signals", "token_shards", "training"),
            *("transparency", "trust", "tuning"),
        )
    },
    "cm3core.config.component_fields": "cm3core.config.schema",
    "cm3core.config.components": "cm3core.config.schema",
    "cm3core.config.interpolation": "cm3core.config.schema",
    "cm3core.fonts": "cm3run.sheets",
    "cm3core.interfaces.benchmark": "cm3run.benchmarks",
    "cm3core.interfaces.contract": "cm3core.interfaces.component",
    "cm3core.interfaces.kind": "cm3core.interfaces.component",
    "cm3core.interfaces.model_parts": "cm3core.interfaces.sampler",
    "cm3core.interfaces.stateful_sampler": "cm3core.interfaces.sampler",
    "cm3core.interfaces.task_source": "cm3core.interfaces.dataset",
    "cm3core.interfaces.training_memory": "cm3core.interfaces.decoder",
    "cm3core.licences": "cm3core.interfaces.dataset",
    "cm3core.plugins.built": "cm3core.plugins.registry",
    "cm3core.plugins.marks": "cm3core.plugins.registry",
    "cm3core.recipe.missing": "cm3core.recipe.recipe",
    "cm3core.recipe.resolve": "cm3core.recipe.merge",
    "cm3core.sequence.fill": "cm3core.sequence.serialize",
    "cm3core.sequence.joined": "cm3core.sequence.prompt_writer",
    "cm3core.sequence.leads": "cm3core.sequence.grammar",
    "cm3core.sequence.lengths": "cm3core.sequence.serialize",
    "cm3core.sequence.prompt_variants": "cm3core.sequence.prompt_writer",
    "cm3core.plugins.lookup": "cm3core.plugins.registry",
    "cm3core.plugins.providers": "cm3core.plugins.registry",
    "cm3core.recipe.choosing": "cm3core.recipe.values",
    "cm3core.recipe.storing": "cm3core.recipe.recipe",
    "cm3core.recipe.yaml_text": "cm3core.recipe.layers",
    "cm3core.sequence.by_sentinels": "cm3core.sequence.segments",
    "cm3core.sequence.holes": "cm3core.sequence.grammar",
    "cm3core.sequence.responses": "cm3core.sequence.infill",
    "cm3core.user_folders": "cm3core.files",
    "cm3core.recipe.layouts": "cm3core.recipe.recipe",
    "cm3core.recipe.memory": "cm3run.training.memory",
    "cm3core.recipe.reaching": "cm3run.trust.guard",
    "cm3core.sequence.of_recipe": "cm3core.recipe.recipe",
    "cm3core.sequence.packing": "cm3run.training.packing",
    "cm3core.commands": "cm3apps.cli.commands",
    "cm3core.config.docs": "cm3apps.catalog",
    "cm3core.plugins.catalog": "cm3apps.catalog",
    "cm3core.cli": "cm3apps.cli",
    "cm3core.plugin_check": "cm3apps.plugin_check",
    "cm3core.testing": "cm3kits",
    "cm3kits.model_parts": "cm3kits.tiny",
    "cm3kits.vocabularies": "cm3kits.samples",
}


#: (module, name) -> the module that now has the name; the old module still exists.
NAMES = {("cm3core.images", name): "cm3run.sheets" for name in ("grid", "font_for")}


def forwarded(module: str, name: str) -> object:
    """A name that has moved out of a module, with a warning; raises `AttributeError` for any other."""
    if (module, name) not in NAMES:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    target = NAMES[module, name]
    warnings.warn(f"{module}.{name} is now {target}.{name}", FutureWarning, stacklevel=3)
    return getattr(importlib.import_module(target), name)


class _Forwarder(Loader):
    """Gives a module a `__getattr__` that forwards to another module."""

    def __init__(self, target: str) -> None:
        self.target = target

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        warnings.warn(
            f"{module.__name__} is now {self.target}; import its names from there",
            FutureWarning,
            stacklevel=2,
        )
        target = importlib.import_module(self.target)
        # PEP 562: a module-level function, which mypy takes for the class's method.
        module.__getattr__ = lambda name: getattr(target, name)  # type: ignore[method-assign]


class MovedModules(MetaPathFinder):
    """Finds the modules of a table, and their submodules, under their earlier names.

    It comes first in `sys.meta_path`: Python would take the remains of a moved package (`__pycache__`) for an
    empty package of that name.

    Args:
        moved: earlier name -> new name.
    """

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        earlier, rest = name, ""
        while earlier not in self.moved:
            earlier, dot, module = earlier.rpartition(".")
            if not dot:
                return None
            rest = f".{module}{rest}"
        return ModuleSpec(name, _Forwarder(self.moved[earlier] + rest), is_package=True)


def serve(moved: Mapping[str, str]) -> None:
    """Make the earlier names of a table importable."""
    sys.meta_path.insert(0, MovedModules(moved))
