"""`generate.memory_split`: what is searched when a model draws, and never when it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cm3plugins
from cm3core.errors import GenerationError, RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3run.build import build
from cm3run.model import load
from messages import tells

SHIPPED = Path(cm3plugins.__file__).parent / "assets" / "models" / "emoji64"


@pytest.mark.slow
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
    recipe = compose(
        "quickstart",
        ["generate.memory_split=all", "dataset.things_share=0.01"],
        registry=registry,
    )
    components = build(recipe, registry, stage="train")
    assert components.memory is components.source


def test_a_split_that_the_data_set_lacks_is_refused_before_training() -> None:
    with pytest.raises(RecipeError) as error:
        compose("quickstart", ["generate.memory_split=al"], registry=load_registry()).check()
    assert tells(error.value, "generate.memory_split: the data set ... 'al'")
    with pytest.raises(RecipeError, match="the data set has no split 'x'"):
        compose(
            "quickstart",
            ["dataset=folder", "dataset.path=p", "generate.memory_split=x"],
            registry=load_registry(),
        ).check()


def test_another_split_can_be_retrieved_from() -> None:
    model = load(SHIPPED)
    wider = model.with_memory(split="all")
    assert [len(one.components.memory) for one in (model, wider)] == [185, 200]
    assert wider.components.retriever is not None
    assert len(wider.components.retriever.memory) == 200
    assert wider.recipe.generate.memory_split == "all"
    assert wider.components.decoder is model.components.decoder
    # what is changed afterwards keeps it
    assert len(wider.with_memory(num_retrieved=1).components.memory) == 200
    own = {index: wider.components.memory.id(index) for index in range(200)}
    assert set(own.values()) > {model.components.memory.id(index) for index in range(185)}


def test_a_split_to_retrieve_from_that_is_none(tmp_path: Path) -> None:
    model = load(SHIPPED)
    with pytest.raises(GenerationError) as error:
        model.with_memory(split="trian")
    assert tells(error.value, "split: the model's data ... 'trian'")
    with pytest.raises(GenerationError) as error:
        model.with_memory("some/bank", split="train")
    assert tells(error.value, "split: 'train' is a ... some/bank")
