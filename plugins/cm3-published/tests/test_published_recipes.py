"""The recipes that come with the distribution: listed, and composed by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.plugins import load_registry
from cm3core.recipe import compose, list_recipes
from cm3core.recipe.library import header


@pytest.mark.parametrize(
    "name", ["chameleon-head", "chameleon-lora", "emu3_5-lora", "glm-image-lora"]
)
def test_a_recipe_is_listed_and_composed(name: str, tmp_path: Path) -> None:
    (listed,) = [recipe for recipe in list_recipes() if recipe.name == name]
    lines = header(listed.path)
    assert lines[0] == f"{name}: {listed.description}"
    for label in ("Hardware:", "Command: cm3 ", "Overrides:"):
        assert any(line.startswith(label) for line in lines)
    recipe = compose(name, registry=load_registry())
    recipe.check()
    # as the same file anywhere else
    copy = tmp_path / f"{name}.yaml"
    copy.write_bytes(listed.path.read_bytes())
    assert recipe.hash == compose(str(copy), registry=load_registry()).hash
    assert set(recipe.origins.values()) >= {f"{name}.yaml"}
