"""What a recipe names outside, in its components and in the sections that hold none."""

from __future__ import annotations

from typing import Any

from cm3core.interfaces.reach import READS, WRITES, Reach
from cm3core.recipe.recipe import MissingComponent, Recipe
from cm3run.trust import path_of, reaches_of, refused_by

#: Keys of the fixed sections that are paths: how they are used, and what for.
_PATHS = {
    "data.cache_dir": (WRITES, "image codes and neighbours"),
    "train.start_from": (READS, "the model that training starts from"),
}


def recipe_reaches(recipe: Recipe, *, refused: bool = False) -> list[Reach]:
    """What a recipe names outside, each with its whole key ("retriever.bank").

    Args:
        recipe: composed, or read from a checkpoint.
        refused: with what its components refuse to use (`cm3run.trust.guard`); else without.
    """
    found: list[Reach] = []
    for kind, (_, config) in recipe.components.items():
        if isinstance(config, MissingComponent):
            continue
        left_out = set() if refused else set(refused_by(config))
        found += [_of(kind, one) for one in reaches_of(config) if one not in left_out]
    return found + section_reaches(recipe)


def section_reaches(recipe: Recipe) -> list[Reach]:
    """The same of the sections that hold no component."""
    found = []
    for key, (how, why) in _PATHS.items():
        section, _, name = key.partition(".")
        value: Any = getattr(getattr(recipe, section), name)
        if value is not None and not _is_shipped(key, value):
            found.append(Reach(how, path_of(value), key, why, value))
    return found


def _of(kind: str, reach: Reach) -> Reach:
    return Reach(reach.how, reach.target, f"{kind}.{reach.key}", reach.why, reach.value)


def _is_shipped(key: str, value: str) -> bool:
    """Whether it is "PLUGIN:NAME" of a model that a plugin ships."""
    return key == "train.start_from" and ":" in value and "/" not in value
