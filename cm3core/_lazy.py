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
        A function that imports an exported name, and raises `AttributeError` for any other. It caches nothing in
        the package, so that a name always has its module's current value, even while that is monkeypatched.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return get
