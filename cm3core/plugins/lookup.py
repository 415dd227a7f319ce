"""Look a component up as it was written: the registry knows what there is now, a text's writer whom
its bare names mean. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from cm3core import interfaces as base
from cm3core.errors import PluginError, close_match
from cm3core.interfaces.component import ComponentConfig, ComponentOrigin, broken, set_origin, shown
from cm3core.plugins.kinds import KINDS
from cm3core.plugins.providers import ANYONE, Provider, Writer
from cm3core.plugins.registry import PluginInfo, Registry, moved_to


def find(
    registry: Registry, kind: str, name: str, *, place: str, writer: Writer = ANYONE, key: str = ""
) -> type[base.ComponentConfig]:
    """Return the config class of a component.

    Args:
        registry: the components that are available now.
        kind: one of `KINDS`.
        name: `name` or `plugin/name`.
        place: where it was written, for the error.
        writer: whom a bare name means there.
        key: of a component inside another one, where it is in the recipe ("retriever.parts.words").

    Raises:
        PluginError: the name is unknown, who provided the component is not in use, or several
            plugins provide it.
    """
    short = name.rpartition("/")[2]
    owners = {owner: _info(registry, owner).distribution for owner in registry.owners(kind, short)}
    if provider := writer.provider(key or kind, name):
        meant = provider.among(owners)
        if meant is None and not owners and moved_to(registry.plugins, kind, short):
            return registry.config_class(kind, short, place=place)  # which says where it is now
        if meant is None:
            raise PluginError(
                place,
                f"the {kind} {short!r} was brought by {provider}, {_absence(registry, provider)}",
                registry.with_reasons("install it, or enable it, and repeat the command"),
            )
        return registry.config_class(kind, f"{meant}/{short}")
    if name == short and len(owners) > 1 and (meant := writer.prefers(owners)):
        return registry.config_class(kind, f"{meant}/{short}")
    try:
        return registry.config_class(kind, name, place=place)
    except PluginError as error:
        gone = [
            f"the plugin {plugin!r} {version} was in use when this was written and is not now"
            for plugin, version in writer.plugins.items()
            if plugin not in (*_loaded(registry), "torch")
        ]
        if owners or not gone:
            raise
        raise PluginError(place, error.cause, "; ".join([error.next_step, *gone])) from None


def finder(registry: Registry) -> Callable[[str, str, str], type[base.ComponentConfig]]:
    """Return what finds a component that is named for one call, by kind, name and the key that names it."""
    return lambda kind, name, place: registry.config_class(kind, name, place=place)


def provider_of(registry: Registry, kind: str, name: str, config: object) -> Provider | None:
    """Return who provides a recipe's component, to store with it; None if no plugin does.

    Args:
        registry: the components that are available now.
        kind, name: as the recipe writes it.
        config: the component's, which tells which plugin a bare name means.
    """
    plugin, _, short = name.rpartition("/")
    for owner in registry.owners(kind, short):
        config_class = registry.config_class(kind, f"{owner}/{short}")
        # names of the class: a plugin that is given as a file is another module each time
        if plugin in ("", owner) and class_name(config_class) == class_name(type(config)):
            info = _info(registry, owner)
            return Provider(name, owner, info.distribution, info.version)
    return None


def class_name(config_class: type[Any]) -> str:
    """Return a class's module and name."""
    return f"{config_class.__module__}:{config_class.__qualname__}"


def _absence(registry: Registry, provider: Provider) -> str:
    """Return why a provider's component is not there, the end of a sentence."""
    if provider.plugin not in _loaded(registry):
        return "which is not in use"
    now = f"{provider.plugin} {_info(registry, provider.plugin).version}".rstrip()
    return f"and {now} does not provide it"


def _loaded(registry: Registry) -> list[str]:
    return [info.name for info in registry.plugins if info.status == "loaded"]


def _info(registry: Registry, plugin: str) -> PluginInfo:
    return next(
        info for info in registry.plugins if info.name == plugin and info.status == "loaded"
    )


# Find components by marks of their config classes, so that the core knows none by name.
#
# The marks are `ComponentConfig.is_default`, `SamplerConfig.edits` and `.structures`, and
# `DocumentSourceConfig.reads`.


def marked(registry: Registry, kind: str, attribute: str) -> dict[str, object]:
    """Return a kind's components whose own config class sets a class variable to a true value.

    Returns name -> its value, sorted by name (`plugin/name` where several plugins provide it).
    Inherited values do not count: a plugin that derives from a bundled config provides another
    component, which takes over no role unasked.
    """
    found: dict[str, object] = {}
    for name in registry.names(kind):
        owners = registry.owners(kind, name)
        for full_name in [name] if len(owners) == 1 else [f"{owner}/{name}" for owner in owners]:
            if value := vars(registry.config_class(kind, full_name)).get(attribute):
                found[full_name] = value
    return found


def default_name(registry: Registry, kind: str, *, place: str) -> str:
    """Return a kind's default component, used if one is needed and none is named.

    It is the first whose config sets `is_default`.

    Raises:
        PluginError: there is none; `place` is where one could be named.
    """
    for name in marked(registry, kind, "is_default"):
        return name
    raise PluginError(
        place,
        f"no {kind} is named, and no plugin in use provides a default one",
        registry.with_reasons(close_match("", registry.names(kind)), kind),
    )


# What a config builds: checked to be of its kind, and marked with the plugin that provides it, so
# that an error of it names the plugin.


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
