"""Public modules under their earlier names, so that plugins written for them keep working.

Importing one returns a module that forwards to the new place, and warns. docs/plugins/stability.md
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
else:  # importing them takes half of what `import cm3core` takes
    Loader = MetaPathFinder = object

#: Earlier name -> where its public names are now.
MOVED = {
    "cm3core.aio": "cm3core.model",
    "cm3core.infill": "cm3core.sequence",
    "cm3core.kinds": "cm3core.plugins",
    "cm3core.likelihood": "cm3core.generation",
    "cm3core.results": "cm3core.model",
    "cm3core.sampling": "cm3core.generation",
    "cm3core.train": "cm3core.training",
}


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
        # PEP 562: a module's own function, which the types take for the class's method.
        module.__getattr__ = lambda name: getattr(target, name)  # type: ignore[method-assign]


class MovedModules(MetaPathFinder):
    """Finds the modules of a table under their earlier names.

    It comes last in `sys.meta_path`, so an existing module is never hidden.

    Args:
        moved: earlier name -> new name.
    """

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = moved

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, _Forwarder(self.moved[name])) if name in self.moved else None


def serve(moved: Mapping[str, str]) -> None:
    """Make the earlier names of a table importable."""
    sys.meta_path.append(MovedModules(moved))
