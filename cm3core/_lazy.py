"""Export names of a package's modules without importing them: they are loaded on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def exporter(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        package: the package's full name.
        modules: exported name -> module in the package that defines it.

    Returns:
        A function that imports an exported name, and raises `AttributeError` for any other one. It keeps nothing
        in the package: a name there is always what its module has now, also while that is replaced.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get
