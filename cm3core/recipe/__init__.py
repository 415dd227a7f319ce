"""Recipes: compose, check, explain and compare them. Imports no torch.

A recipe is a YAML file: sections named after the component kinds, each with the component's `name` and its keys, and
the fixed sections of `cm3core.recipe.schema`. It builds on others (`extends: [a, b]`), and `key=value` on the command line on it.

    registry = cm3core.plugins.load_registry()
    recipe = compose("cm3leon-350m", ["train.steps=100", "attention=reference"], registry=registry)
    recipe.decoder.num_layers, recipe.to_yaml(), recipe.hash
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3core.recipe.library import RecipeFile, list_recipes
    from cm3core.recipe.merge import compose, recipe_from_yaml
    from cm3core.recipe.recipe import Recipe, diff
    from cm3core.recipe.schema import DataSection, GenerateSection, TrainSection, VocabularySection

__all__ = [
    "DataSection", "GenerateSection", "Recipe", "RecipeFile", "TrainSection", "VocabularySection", "compose", "diff",
    "list_recipes", "recipe_from_yaml",
]

_MODULES = {
    "compose": "merge", "recipe_from_yaml": "merge", "RecipeFile": "library", "list_recipes": "library", "Recipe": "recipe",
    "diff": "recipe", "DataSection": "schema", "GenerateSection": "schema", "TrainSection": "schema",
    "VocabularySection": "schema",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `cm3 recipe list` needs the file names only, not the plugins."""
    if name not in _MODULES:
        raise AttributeError(f"module 'cm3core.recipe' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cm3core.recipe.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
