"""Recipes that other distributions bring."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.plugins.registry import class_name
from cm3core.recipe import compose, library, list_recipes

RIVAL = """
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import SamplerConfig

CM3_API = 1

@dataclass(kw_only=True)
class TheirConfig(SamplerConfig):
    guidance_scale: float = 1.0
    def build(self): raise AssertionError("described, never built")

@hookimpl
def cm3_samplers():
    return {"cfg": TheirConfig}
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with a sampler `cfg` of its own, and two recipes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "cm3_theirs"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text(RIVAL, encoding="utf-8")
    text = "extends: scenes-small\nsampler: {name: cfg, guidance_scale: 2.5}\n"
    for name in ("theirs", "tiny"):
        (package / "recipes" / f"{name}.yaml").write_text(f"# {name}: a trial\n{text}", "utf-8")
    info = tmp_path / "cm3_theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: cm3-theirs\nVersion: 1.0\n", "utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[cm3core.plugins]\ntheirs = cm3_theirs\n\n[cm3core.recipes]\n"
        "theirs = cm3_theirs.recipes\ngone = cm3_is_nowhere.recipes\n",
        "utf-8",
    )


def test_they_are_listed_and_composed_by_name(theirs: None) -> None:
    listed = {recipe.name: recipe for recipe in list_recipes()}
    assert listed["theirs"].description == "a trial"
    assert listed["tiny"].description != "a trial"  # ours has the name
    recipe = compose("theirs", registry=load_registry())
    assert recipe.flat()["sampler.guidance_scale"] == 2.5
    assert recipe.origins["sampler.guidance_scale"] == "theirs.yaml"
    # a name that two plugins have: the one whose recipe it is
    assert class_name(type(recipe.sampler)) == "cm3_theirs:TheirConfig"


def test_one_that_is_not_installed_is_told_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "brought", dict)
    assert "chameleon-lora" not in [recipe.name for recipe in list_recipes()]
    with pytest.raises(RecipeError) as caught:
        compose("chameleon-lora", registry=load_registry())
    assert str(caught.value) == (
        "recipe 'chameleon-lora': the distribution cm3published has it, but is not installed\n"
        "  next: pip install ./plugins/cm3-published, in the checkout of cm3leon"
    )
