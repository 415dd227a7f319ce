"""`generate.memory_split`: what is searched when a model draws, and never when it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cm3plugins
from cm3core.build import build
from cm3core.errors import RecipeError
from cm3core.model import load
from cm3core.plugins import load_registry
from cm3core.recipe import compose

SHIPPED = Path(cm3plugins.__file__).parent / "assets" / "models" / "emoji64"


def test_a_model_draws_with_another_split_than_it_was_trained_on(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED, tmp_path / "model")
    recipe = (folder / "recipe.yaml").read_text()
    assert "  retrieve: true\n" in recipe
    wider = recipe.replace("  retrieve: true\n", "  retrieve: true\n  memory_split: all\n")
    (folder / "recipe.yaml").write_text(wider)
    components = load(folder).components
    assert (len(components.source), len(components.memory)) == (185, 200)
    assert components.retriever is not None
    assert len(components.retriever.memory) == 200
    assert len(load(SHIPPED).components.memory) == 185


def test_training_never_sees_it() -> None:
    registry = load_registry()
    recipe = compose("quickstart", ["generate.memory_split=all"], registry=registry)
    components = build(recipe, registry, stage="train")
    assert components.memory is components.source


def test_a_split_that_the_data_set_lacks_is_refused_before_training() -> None:
    with pytest.raises(RecipeError) as error:
        compose("quickstart", ["generate.memory_split=al"], registry=load_registry()).check()
    assert str(error.value) == (
        "generate.memory_split: the data set has no split 'al'\n"
        "  next: use one of train, comp, unseen, all"
    )
    with pytest.raises(RecipeError, match="the data set has no split 'x'"):
        compose(
            "quickstart",
            ["dataset=folder", "dataset.path=p", "generate.memory_split=x"],
            registry=load_registry(),
        ).check()
