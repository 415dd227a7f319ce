"""Plugins: discover and describe them, and look components up by kind and name.

Imports no torch.

discovery  find the plugins               registry  lookup by kind and name, resolving bare names as their writer meant
describe   introspection of one plugin    kinds     the core's kinds of components
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.plugins.discovery import load_registry, plugin_of_file, registry_of_one
    from cm3core.plugins.kinds import KINDS, Kind
    from cm3core.plugins.registry import PluginInfo, Registry, plugin_versions

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
        "load_registry": "discovery",
        "plugin_of_file": "discovery",
        "plugin_versions": "registry",
        "registry_of_one": "discovery",
    },
)
