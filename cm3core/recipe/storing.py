"""A recipe as files that mean the same later, whatever is installed then."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from cm3core.config.schema import all_parts
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name
from cm3core.plugins.lookup import provider_of
from cm3core.plugins.providers import COMPONENTS, Provider, dump_providers
from cm3core.plugins.registry import Registry
from cm3core.recipe.layers import STORED
from cm3core.recipe.recipe import Recipe


def in_full(recipe: Recipe, registry: Registry) -> Recipe:
    """Return the recipe with `plugin/name` where several plugins provide a name.

    Its YAML then means the same as a file of its own.
    """
    recipe = deepcopy(recipe)
    names = dict(recipe.component_names)
    for kind, (name, config) in recipe.components.items():
        names[kind] = _full_name(registry, kind, name, config)
        for _, part in all_parts(config):
            choose(part, _full_name(registry, part.kind, chosen_name(part), part))
    for _, part in recipe.section_parts:
        choose(part, _full_name(registry, part.kind, chosen_name(part), part))
    return replace(recipe, component_names=names)


def _full_name(registry: Registry, kind: str, name: str, config: ComponentConfig) -> str:
    provider = provider_of(registry, kind, name, config)
    several = provider is not None and len(registry.owners(kind, name)) > 1
    return f"{provider.plugin}/{name}" if provider is not None and several else name


def files_of(recipe: Recipe, registry: Registry) -> dict[str, str]:
    """Return file name -> text: the resolved recipe, and who provides its components.

    Both belong in one folder; `compose` reads them again.
    """
    providers = providers_of(recipe, registry)
    return {COMPONENTS: dump_providers(providers), STORED: recipe.to_yaml()}


def kinds_of(recipe: Recipe) -> set[str]:
    """The kinds of a recipe's components, and of those inside them."""
    parts = [part for _, config in recipe.components.values() for _, part in all_parts(config)]
    return {*recipe.components, *(part.kind for part in parts)}


def providers_of(recipe: Recipe, registry: Registry) -> dict[str, Provider]:
    """Return kind -> who provides its component, and the same for components inside others, by
    their key."""
    components = [(kind, kind, name, config) for kind, (name, config) in recipe.components.items()]
    for kind, (_, config) in recipe.components.items():
        components += [
            (f"{kind}.{path}", part.kind, chosen_name(part), part)
            for path, part in all_parts(config)
        ]
    components += [(key, part.kind, chosen_name(part), part) for key, part in recipe.section_parts]
    return {
        key: provider
        for key, kind, name, config in components
        if (provider := provider_of(registry, kind, name, config)) is not None
    }
