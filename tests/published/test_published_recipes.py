"""The recipes that come with the distribution: listed, composed and known by their hashes."""

from __future__ import annotations

import pytest

from cm3core.plugins import load_registry
from cm3core.recipe import compose, list_recipes
from cm3core.recipe.library import header

HASHES = {"chameleon-head": "d3767ca2a691", "chameleon-lora": "dc3723a7e631"}


@pytest.mark.parametrize("name", HASHES)
def test_a_recipe_is_listed_and_composed(name: str) -> None:
    (listed,) = [recipe for recipe in list_recipes() if recipe.name == name]
    lines = header(listed.path)
    assert lines[0] == f"{name}: {listed.description}"
    for label in ("Hardware:", "Command: cm3 ", "Overrides:"):
        assert any(line.startswith(label) for line in lines)
    recipe = compose(name, registry=load_registry())
    recipe.check()
    assert recipe.hash == HASHES[name]
    assert set(recipe.origins.values()) >= {f"{name}.yaml"}
