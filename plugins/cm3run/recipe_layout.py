"""The layout of a recipe, that of recipes without the section `layout`, and the table of ids that goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.errors import PluginError
from cm3core.interfaces.layout import LayoutConfig, VocabularyParts
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.registry import built
from cm3core.recipe.recipe import MissingComponent, available
from cm3core.vocab import VocabularySizes

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer, ImageTokenizerConfig, Layout, TextTokenizer
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


def layout_config(recipe: Recipe, registry: Registry | None = None) -> LayoutConfig:
    """The recipe's layout, or the default one.

    Args:
        recipe: composed.
        registry: the installed plugins. None: those that are found.

    Raises:
        PluginError: the recipe's layout is not installed; or there is not one default.
    """
    if isinstance(recipe.layout, MissingComponent):
        recipe.layout.refuse()
    return default_layout(registry) if recipe.layout is None else recipe.layout


def default_layout(registry: Registry | None = None) -> LayoutConfig:
    """The layout of recipes that name none: the one whose config says `is_default`.

    Raises:
        PluginError: no plugin has one, or several have.
    """
    registry = load_registry() if registry is None else registry
    found = {
        f"{owner}/{name}": config_class
        for name in registry.names("layout")
        for owner in registry.owners("layout", name)
        if issubclass(
            config_class := registry.config_class("layout", f"{owner}/{name}"), LayoutConfig
        )
        and config_class.is_default
    }
    if len(found) != 1:
        what = "no plugin has" if not found else f"{' and '.join(found)} both are"
        raise PluginError(
            "recipe section 'layout'",
            f"is not there, and {what} the layout of recipes without it",
            registry.with_reasons("name a layout, or see 'cm3 plugin list'", "layout"),
        )
    return next(iter(found.values()))()


def layout_of(
    recipe: Recipe,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer | ImageTokenizerConfig,
    registry: Registry | None = None,
) -> Layout:
    """The recipe's layout, which has the vocabulary; without that section, the default one.

    `registry`: see `layout_config`. Raises `RecipeError` if it can't be made of these tokenizers.
    """
    config = layout_config(recipe, registry)
    sizes, objective = recipe.vocabulary, available(recipe.objective)
    given = VocabularySizes(
        text_tokenizer.vocab_size,
        image_tokenizer.codebook_size,
        sizes.num_text,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
        () if objective is None else tuple(objective.control_tokens()),
    )
    parts = VocabularyParts(text_tokenizer, image_tokenizer.codebook_size, given)
    return built(config.build(parts, image_tokenizer.grid), config, registry)
