"""What a config builds: checked to be of its kind, and marked with the plugin that provides it, so
that an error of it names the plugin. Imports no torch."""

from __future__ import annotations

from typing import TypeVar

from cm3core.interfaces.component import ComponentConfig
from cm3core.interfaces.contract import ComponentOrigin, broken, set_origin, shown
from cm3core.plugins.kinds import KINDS
from cm3core.plugins.lookup import class_name
from cm3core.plugins.registry import Registry

T = TypeVar("T")


def built(component: T, config: ComponentConfig, registry: Registry | None = None) -> T:
    """Return the component that the config's `build` or `load` returned.

    Args:
        component: what it returned.
        config: the config.
        registry: knows which plugin the config is of; None: errors name its class.

    Raises:
        PluginError: it is not an implementation of the kind's interface.
    """
    kind = (KINDS if registry is None else registry.kinds).get(config.kind)
    origin = None if registry is None else origin_of(registry, config)
    if kind is not None and not isinstance(component, kind.interface_class):
        if origin is not None:
            set_origin(config, origin)
        raise broken(config, "build", f"it returned {shown(component)}, not a {kind.interface}")
    if origin is not None:
        set_origin(component, origin)
    return component


def origin_of(registry: Registry, config: ComponentConfig) -> ComponentOrigin | None:
    """Return the plugin and the name of a config; None if no plugin provides its class."""
    wanted = class_name(type(config))
    for name in registry.names(config.kind):
        for owner in registry.owners(config.kind, name):
            if class_name(registry.config_class(config.kind, f"{owner}/{name}")) == wanted:
                return ComponentOrigin(owner, config.kind, name)
    return None
