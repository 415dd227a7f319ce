"""A recipe as files that mean the same later, whatever is installed then."""

from __future__ import annotations

from dataclasses import replace

from cm3core.plugins.lookup import provider_of
from cm3core.plugins.providers import COMPONENTS, dump_providers
from cm3core.plugins.registry import Registry
from cm3core.recipe.layers import STORED
from cm3core.recipe.recipe import Recipe


def in_full(recipe: Recipe, registry: Registry) -> Recipe:
    """Return the recipe with `plugin/name` where several plugins provide a name.

    Its YAML then means the same as a file of its own.
    """
    names = dict(recipe.component_names)
    for kind, (name, config) in recipe.components.items():
        provider = provider_of(registry, kind, name, config)
        if provider is not None and len(registry.owners(kind, name)) > 1:
            names[kind] = f"{provider.plugin}/{name}"
    return replace(recipe, component_names=names)


def files_of(recipe: Recipe, registry: Registry) -> dict[str, str]:
    """Return file name -> text: the resolved recipe, and who provides its components.

    Both belong in one folder; `compose` reads them again.
    """
    providers = {
        kind: provider
        for kind, (name, config) in recipe.components.items()
        if (provider := provider_of(registry, kind, name, config)) is not None
    }
    return {COMPONENTS: dump_providers(providers), STORED: recipe.to_yaml()}
