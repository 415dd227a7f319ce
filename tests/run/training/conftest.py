"""A run with which several test files compare, and its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.plugins import Registry, load_registry
from cm3run.training.loop import train
from cm3run.training.state import TrainResult
from squares import PARTS, squares


@pytest.fixture(scope="package")
def registry() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="package")
def whole(registry: Registry, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """An uninterrupted run of 20 steps."""
    return train(
        squares(registry, cache, ["train.steps=20"]),
        tmp_path_factory.mktemp("whole"),
        registry,
        progress=False,
    )
