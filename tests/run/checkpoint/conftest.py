"""A run's checkpoints, and a copy of the newest to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cm3core.plugins import Registry, load_registry
from cm3core.recipe import Recipe, compose
from cm3run.checkpoint import latest_checkpoint
from cm3run.training import train

PARTS = Path(__file__).parents[2] / "fixtures" / "train"


@pytest.fixture(scope="package")
def small_registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


@pytest.fixture(scope="package")
def small_recipe(small_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    cache = tmp_path_factory.mktemp("cache")
    return compose(
        str(PARTS / "squares.yaml"),
        [f"data.cache_dir={cache}", "train.steps=4", "train.validation_splits=[]"],
        registry=small_registry,
    )


@pytest.fixture(scope="package")
def small_run(
    small_registry: Registry, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of four steps."""
    out = tmp_path_factory.mktemp("run") / "out"
    train(small_recipe, out, small_registry, progress=False)
    return out


@pytest.fixture
def spoiled_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run with only its newest checkpoint."""
    newest = latest_checkpoint(small_run)
    assert newest is not None
    shutil.copytree(newest, tmp_path / "out" / "checkpoints" / newest.name)
    return tmp_path / "out"


@pytest.fixture
def spoiled(spoiled_run: Path) -> Path:
    """The newest checkpoint of the copied run."""
    newest = latest_checkpoint(spoiled_run)
    assert newest is not None
    return newest
