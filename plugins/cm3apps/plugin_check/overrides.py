"""The configs of a plugin's components, with the command line's overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING

import yaml

from cm3core.config.schema import component_field, default, hints, init_fields
from cm3core.errors import PluginError, close_match
from cm3core.interfaces import ComponentConfig
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.registry import Registry
from cm3core.recipe.forms import path_of, plain

COMMAND_LINE = "command line"


def components_of(registry: Registry, only: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(kind, name) of a registry's components: all, or those in `only` (`NAME` or `KIND/NAME`)."""
    components = [(kind, name) for kind in registry.kinds for name in registry.names(kind)]
    for wanted in only:
        if not any(wanted in (name, f"{kind}/{name}") for kind, name in components):
            raise PluginError(
                f"--only {wanted}",
                "the plugin provides no such component",
                close_match(wanted.rpartition("/")[2], [name for _, name in components]),
            )
    return [
        (kind, name)
        for kind, name in components
        if not only or name in only or f"{kind}/{name}" in only
    ]


def check_overrides(overrides: Sequence[str], registry: Registry) -> None:
    """Raise `PluginError` for an override that belongs to no component of the registry.

    Overrides are `KIND.KEY=VALUE` or `NAME.KEY=VALUE`.
    """
    provided = components_of(registry)
    for override in overrides:
        prefix, key, _ = _parts(override)
        components = [component for component in provided if prefix in component]
        place = f"{COMMAND_LINE}: {override}"
        if not components and prefix in registry.kinds:
            raise PluginError(
                place,
                f"the plugin provides no {prefix}",
                close_match(prefix, {kind for kind, _ in provided}),
            )
        if not components:
            known = {part for component in provided for part in component}
            raise PluginError(
                place, f"the plugin provides nothing called {prefix!r}", close_match(prefix, known)
            )
        keys = {
            name for component in components for name in hints(registry.config_class(*component))
        }
        if key not in keys:
            raise PluginError(
                place,
                f"{' and '.join('/'.join(component) for component in components)} has no key "
                f"{key!r}",
                close_match(key, keys),
            )


def _parts(override: str) -> tuple[str, str, str]:
    """ "sampler.training.steps=3" -> "sampler", "training", "training.steps=3"."""
    dotted, equals, value = plain(override).partition("=")
    prefix, dot, key = dotted.partition(".")
    if not equals or not dot or not prefix or not key:
        raise PluginError(
            f"{COMMAND_LINE}: {override}",
            "is not KIND.KEY=VALUE or NAME.KEY=VALUE",
            "write e.g. sampler.temperature=0.5",
        )
    return prefix, str(path_of(key)[0]), f"{key}={value}"


def own_overrides(
    kind: str, name: str, overrides: Sequence[str], config_class: type[ComponentConfig]
) -> list[str]:
    """The overrides that apply to a component, as `KIND.KEY=VALUE`.

    An override of a kind skips components without that key.
    """
    own = []
    for override in overrides:
        prefix, key, rest = _parts(override)
        if prefix in (kind, name) and key in hints(config_class):
            own.append(f"{kind}.{rest}")
    return own


def config_of(
    kind: str, name: str, overrides: Sequence[str], registry: Registry
) -> ComponentConfig:
    """A component's config: its defaults and the overrides.

    Raises:
        RecipeError: a value is missing or of the wrong type.
    """
    from cm3core.recipe import recipe_from_yaml

    own = own_overrides(kind, name, overrides, registry.config_class(kind, name))
    full_name = name
    if any(map(component_field, hints(registry.config_class(kind, name)).values())):
        full_name = f"{registry.plugins[0].name}/{name}"
        registry = with_installed(registry)
    text = yaml.safe_dump({kind: {"name": full_name}})
    config = recipe_from_yaml(text, registry, label="given", overrides=own).section(kind)
    assert config is not None
    return config


def with_installed(own: Registry) -> Registry:
    """The registry of one plugin, and the registry of all installed plugins, which its components may contain."""
    everything = load_registry(environ={})
    info = own.plugins[0]
    if info.name not in {other.name for other in everything.plugins}:
        everything.add_all(own)
    return everything


def missing_keys(
    kind: str, name: str, overrides: Sequence[str], config_class: type[ComponentConfig]
) -> list[str]:
    """The keys without a default or an override."""
    given = {
        str(path_of(override.partition("=")[0])[1])
        for override in own_overrides(kind, name, overrides, config_class)
    }
    return [
        item.name
        for item in init_fields(config_class)
        if default(item) is MISSING and item.name not in given
    ]
