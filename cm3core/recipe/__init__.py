"""Recipes: compose, check, explain and compare them. Imports no torch.

A recipe is a YAML file: sections named after the component kinds, each with the component's `name`
and its keys, and the fixed sections of `cm3core.recipe.sections`. It may extend other recipes
(`extends: [a, b]`), and `key=value` on the command line overrides its values.

    registry = cm3core.plugins.load_registry()
    recipe = compose("cm3leon-350m", ["train.steps=100", "attention=reference"], registry=registry)
    recipe.decoder.num_layers, recipe.to_yaml(), recipe.hash
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3core.recipe.library import RecipeFile, list_recipes
    from cm3core.recipe.merge import compose, recipe_from_yaml
    from cm3core.recipe.recipe import Recipe, diff
    from cm3core.recipe.sections import (
        DataSection,
        GenerateSection,
        TrainSection,
        TuneSection,
        VocabularySection,
    )

__all__ = [
    "DataSection",
    "GenerateSection",
    "Recipe",
    "RecipeFile",
    "TrainSection",
    "TuneSection",
    "VocabularySection",
    "compose",
    "diff",
    "list_recipes",
    "recipe_from_yaml",
]

__getattr__ = exporter(
    __name__,
    {
        "compose": "merge",
        "recipe_from_yaml": "merge",
        "RecipeFile": "library",
        "list_recipes": "library",
        "Recipe": "recipe",
        "diff": "recipe",
        "DataSection": "sections",
        "GenerateSection": "sections",
        "TrainSection": "sections",
        "TuneSection": "sections",
        "VocabularySection": "sections",
    },
)
