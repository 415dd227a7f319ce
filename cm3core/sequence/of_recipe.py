"""The table of ids and the layout of a recipe, for tokenizers that are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core.errors import RecipeError
from cm3core.interfaces.layout import VocabularyParts
from cm3core.plugins.built import built
from cm3core.recipe.missing import MissingComponent, available
from cm3core.sequence.by_sentinels import SentinelLayout
from cm3core.vocab import NUM_CONTROL, Vocabulary

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
    """The recipe's layout, which has the vocabulary; without that section, `SentinelLayout`.

    `registry`: see `built`. Raises `RecipeError` if it can't be made of these tokenizers.
    """
    by_sizes = vocabulary_of(recipe, text_tokenizer, image_tokenizer)
    if recipe.layout is None:
        return SentinelLayout(by_sizes)
    config = recipe.layout
    if isinstance(config, MissingComponent):
        config.refuse()
    parts = VocabularyParts(text_tokenizer, image_tokenizer.codebook_size, by_sizes)
    return built(config.build(parts, image_tokenizer.grid), config, registry)


def vocabulary_of(
    recipe: Recipe,
    text_tokenizer: TextTokenizer,
    image_tokenizer: ImageTokenizer | ImageTokenizerConfig,
) -> Vocabulary:
    """The table of ids that follows from the recipe's sizes and fits both tokenizers."""
    sizes, objective = recipe.vocabulary, available(recipe.objective)
    needed = text_tokenizer.vocab_size + NUM_CONTROL
    num_text = needed if sizes.num_text is None else sizes.num_text
    if num_text < needed:
        raise RecipeError(
            "vocabulary.num_text",
            f"is {num_text}; the text tokenizer has {text_tokenizer.vocab_size} ids and "
            f"{NUM_CONTROL} are control tokens",
            f"use {needed} or more, or null for exactly that",
        )
    return Vocabulary(
        num_text,
        image_tokenizer.codebook_size,
        sizes.num_sentinels,
        sizes.num_reserved,
        sizes.multiple_of,
        () if objective is None else tuple(objective.control_tokens()),
    )
