"""Plugins: discover them, describe what they bring, and look components up by kind and name.
Imports no torch.

registry  discovery and lookup          kinds    what a kind of component is
describe  introspection of one plugin   catalog  what is there, for people to read
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.plugins.kinds import KINDS, Kind
    from cm3core.plugins.registry import (
        PluginInfo,
        Registry,
        load_registry,
        plugin_of_file,
        plugin_versions,
        registry_of_one,
    )

__all__ = [
    "KINDS",
    "Kind",
    "PluginInfo",
    "Registry",
    "load_registry",
    "plugin_of_file",
    "plugin_versions",
    "registry_of_one",
]

__getattr__ = exporter(
    __name__,
    {
        "KINDS": "kinds",
        "Kind": "kinds",
        "PluginInfo": "registry",
        "Registry": "registry",
        "load_registry": "registry",
        "plugin_of_file": "registry",
        "plugin_versions": "registry",
        "registry_of_one": "registry",
    },
)
