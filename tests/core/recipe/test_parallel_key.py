"""`generate.parallel`: what it may be, and that no hash depends on it."""

from __future__ import annotations

from typing import Any

import pytest

from cm3core.errors import RecipeError
from cm3core.plugins.discovery import load_registry
from cm3core.recipe import compose
from cm3core.recipe.recipe import Recipe


def composed(*overrides: str) -> Recipe:
    return compose("tiny", overrides, registry=load_registry())


@pytest.mark.parametrize(
    ("override", "window", "is_shown"),
    [
        ("generate.parallel.window=16", 16, True),
        ("generate.parallel={method: jacobi, window: auto}", "auto", False),
        ("generate.parallel=null", 1, True),
        ("generate.parallel=off", 1, True),
    ],
)
def test_the_hash_does_not_depend_on_it(override: str, window: Any, is_shown: bool) -> None:
    recipe = composed(override)
    recipe.check()
    assert recipe.generate.window == window
    assert recipe.hash == composed().hash
    assert ("parallel" in recipe.to_yaml()) == is_shown


def test_auto_is_the_default() -> None:
    assert composed().generate.window == "auto"


@pytest.mark.parametrize("window", [0, 257])
def test_windows_out_of_range(window: int) -> None:
    with pytest.raises(
        RecipeError, match=rf"generate\.parallel\.window: is {window}, must be from 1 to 256"
    ):
        composed(f"generate.parallel.window={window}").check()


def test_a_method_that_is_not_there() -> None:
    with pytest.raises(
        RecipeError, match=r"generate\.parallel\.method: is 'medusa', must be jacobi"
    ):
        composed("generate.parallel.method=medusa")
