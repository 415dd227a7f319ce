"""A model that moved to another distribution is found under its earlier name, or the error names the distribution."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cm3core.errors import CheckpointError
from cm3core.plugins import load_registry
from cm3run.checkpoint import find_model, lasting_name
from messages import tells


def registry_of(*plugins: tuple[str, str, dict[str, str]], models: dict[str, Path]) -> Any:
    """A registry of plugins: name, distribution and what moved from it."""
    infos = [
        SimpleNamespace(name=name, distribution=distribution, beside=beside)
        for name, distribution, beside in plugins
    ]
    return SimpleNamespace(plugins=infos, models=lambda: models)


@pytest.fixture
def moved() -> dict[str, str]:
    return {"model/bells": "other-dist", "retriever/chimes": "other-dist"}


def test_the_earlier_name_is_of_the_model_where_it_is_now(moved: dict[str, str]) -> None:
    models = {"new:bells": Path("bells"), "old:chimes": Path("chimes")}
    both = registry_of(("old", "old-dist", moved), ("new", "other-dist", {}), models=models)
    assert find_model("old:bells", both) == Path("bells")
    assert lasting_name("old:bells", both) == "new:bells"
    assert lasting_name("new:bells", both) == "new:bells"
    assert lasting_name("old:chimes", both) == "old:chimes", "a retriever of that name moved"
    # another plugin's model of the same name is another model
    with pytest.raises(CheckpointError, match="no installed plugin ships it"):
        find_model("third:bells", both)


def test_without_the_distribution_the_error_names_it(moved: dict[str, str]) -> None:
    alone = registry_of(("old", "old-dist", moved), models={})
    for function in (find_model, lasting_name):
        for name in ("old:bells", "new:bells"):  # the earlier name and the present one
            with pytest.raises(CheckpointError) as caught:
                function(name, alone)
            assert tells(caught.value, f"model {name!r} ... next: pip install other-dist")


def test_the_icon_model_before_its_tuning() -> None:
    registry = load_registry()
    assert find_model("bundled:icons64", registry) == registry.models()["lab:icons64"]
    assert lasting_name("bundled:icons64", registry) == "lab:icons64"
