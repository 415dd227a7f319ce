"""Look a component up as it was written: the registry knows what there is now, a text's writer whom
its bare names mean. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cm3core import interfaces as base
from cm3core.errors import PluginError
from cm3core.plugins.providers import ANYONE, Provider, Writer
from cm3core.plugins.registry import PluginInfo, Registry


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
