"""The table of ids and the layout of a recipe, for tokenizers that are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.interfaces.layout import VocabularyParts
from cm3core.plugins.built import built
from cm3core.recipe.layouts import layout_config
from cm3core.recipe.missing import available
from cm3core.vocab import VocabularySizes

if TYPE_CHECKING:
    from cm3core.interfaces import ImageTokenizer, ImageTokenizerConfig, Layout, TextTokenizer
    from cm3core.plugins.registry import Registry
    from cm3core.recipe import Recipe


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
