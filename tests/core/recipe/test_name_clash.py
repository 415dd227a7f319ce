"""Another plugin provides a component of the same name: whom the name means, and when it is looked
up at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rrf_plugin
from cm3apps.cli.main import main
from cm3core.errors import PluginError, RecipeError
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.registry import COMPONENTS, Writer, class_name
from cm3core.recipe import compose, list_recipes
from cm3core.recipe.layers import STORED
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import files_of, in_full, providers_of
from cm3run.bank.manifest import Maker
from cm3run.bank_tools import config_of
from cm3run.build import section
from cm3run.checkpoint import bundled_models, read_recipe
from messages import tells
from throwaway_plugins import Install, info_of

RIVAL = """\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import (
    DecoderConfig, EmbedderConfig, ObjectiveConfig, SamplerConfig, TextTokenizerConfig
)

CM3_API = 1

@dataclass(kw_only=True)
class RivalConfig(SamplerConfig):
    sharpness: float = 1.0
    def build(self): raise AssertionError("described, never built")

@dataclass(kw_only=True)
class RivalObjectiveConfig(ObjectiveConfig):
    def build(self, vocabulary): raise AssertionError("described, never built")

@hookimpl
def cm3_samplers():
    return {"cfg": RivalConfig, "own": RivalConfig}

@hookimpl
def cm3_objectives():
    return {"cm3": RivalObjectiveConfig}
"""
MINE = """\
extends: tiny
sampler: {name: cfg, guidance_scale: 2.5}
"""


@pytest.fixture
def clash(install: Install) -> Registry:
    install("a-rival", RIVAL)  # before "bundled" in every order
    return load_registry()


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A recipe of the user's."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    return str(path)


def plugin_of(config: object) -> str:
    return class_name(type(config)).partition(".")[0]


@pytest.mark.parametrize("name", [recipe.name for recipe in list_recipes()])
def test_shipped_recipes_mean_the_bundled_components(name: str, clash: Registry) -> None:
    then = compose(name, registry=load_registry(environ={"CM3_DISABLE_PLUGINS": "a-rival"}))
    now = compose(name, registry=clash)
    assert now.hash == then.hash
    # recipes of other distributions also name their own
    assert {plugin_of(config) for _, config in now.components.values()} <= {
        "cm3icons",
        "cm3plugins",
        "cm3published",
    }


def test_overrides_of_a_shipped_recipe_do_not_change_that(clash: Registry) -> None:
    recipe = compose("quickstart", ["sampler.guidance_scale=2"], registry=clash)
    assert plugin_of(recipe.sampler) == "cm3plugins"
    other = compose("quickstart", ["sampler=a-rival/cfg"], registry=clash)
    assert plugin_of(other.sampler) == "throwaway_a_rival:RivalConfig"


def test_the_bundled_model_means_the_bundled_components(clash: Registry) -> None:
    """Its checkpoint is from before components were stored with who provided them."""
    recipe = read_recipe(bundled_models(clash)["bundled:emoji64"], clash)
    assert {plugin_of(config) for _, config in recipe.components.values()} == {"cm3plugins"}


def test_ambiguous_in_a_recipe_of_ones_own(mine: str, clash: Registry) -> None:
    with pytest.raises(PluginError) as caught:
        compose(mine, registry=clash)
    assert tells(caught.value, f"{mine}: sampler.name: the sampler 'cfg' ... a-rival/cfg")


def test_an_override_that_names_it_in_full_keeps_its_keys(mine: str, clash: Registry) -> None:
    recipe = compose(mine, ["sampler=bundled/cfg"], registry=clash)
    assert vars(recipe.sampler)["guidance_scale"] == 2.5
    assert recipe.component_names["sampler"] == "bundled/cfg"
    assert recipe.origins["sampler.guidance_scale"] == mine
    with pytest.raises(RecipeError, match="has no key 'guidance_scale'"):
        compose(mine, ["sampler=a-rival/cfg"], registry=clash)


def test_a_name_that_is_replaced_is_not_looked_up(
    mine: str, clash: Registry, tmp_path: Path
) -> None:
    recipe = compose(mine, ["sampler=top_p"], registry=clash)
    assert "guidance_scale" not in vars(recipe.sampler)
    lost = tmp_path / "lost.yaml"
    lost.write_text("extends: tiny\nsampler: {name: gone, depth: 3}\n", encoding="utf-8")
    assert compose(str(lost), ["sampler=own"], registry=clash).component_names["sampler"] == "own"
    assert compose(str(lost), ["sampler=null"], registry=clash).sampler is None
    lost.write_text("extends: tiny\nsampler: {name: gone/cfg, depth: 3}\n", encoding="utf-8")
    assert compose(str(lost), ["sampler=bundled/cfg"], registry=clash).sampler is not None
    with pytest.raises(PluginError, match="no plugin 'gone' is loaded"):
        compose(str(lost), ["sampler.depth=4"], registry=clash)


def test_what_is_shown_means_the_same_as_a_file(
    clash: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipe", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert "  name: bundled/cfg\n" in shown
    assert "  name: bundled/cm3\n" in shown
    assert "  name: sdpa\n" in shown
    path = tmp_path / "shown.yaml"
    path.write_text(shown, encoding="utf-8")
    assert plugin_of(compose(str(path), registry=clash).sampler) == "cm3plugins"


def test_a_plugin_with_the_name_of_the_bundled_one_does_not_take_its_place(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("a-twin", RIVAL, points="bundled = throwaway_a_twin")
    registry = load_registry(environ={})
    assert info_of(registry, "bundled").distribution == "cm3leon"
    assert compose("tiny", registry=registry).sampler is not None
    twins = [info for info in registry.plugins if info.name == "bundled"]
    assert [(info.status, info.distribution) for info in twins] == [
        ("loaded", "cm3leon"),
        ("broken", "a-twin"),
    ]


def test_a_command_of_ours_stays_what_it_is(install: Install) -> None:
    hook = "\n@hookimpl\ndef cm3_commands():\n    return {'quickstart': 'throwaway_a_rival:f'}\n"
    install("a-rival", RIVAL + hook + "\ndef f(parser): raise AssertionError\n")
    command = load_registry().command("quickstart")
    assert command is not None
    assert command.__module__.startswith("cm3apps")


def test_a_bank_means_the_bundled_components(clash: Registry) -> None:
    config = config_of(clash, "sampler", Maker("cfg", {}, ""), place="bank")
    assert plugin_of(config) == "cm3plugins"


INNER = ["sampler=plain", "sampler.inner={name: cfg, guidance_scale: 3}"]


def with_parts(*, disabled: str = "") -> Registry:
    """The registry with a sampler around another one."""
    return load_registry([Path(rrf_plugin.__file__)], environ={"CM3_DISABLE_PLUGINS": disabled})


def test_a_component_inside_another_keeps_its_meaning(install: Install, tmp_path: Path) -> None:
    recipe = compose("tiny", INNER, registry=(then := with_parts()))
    for name, text in files_of(recipe, then).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    stored = json.loads((tmp_path / COMPONENTS).read_text())
    assert stored["sampler.inner"]["plugin"] == "bundled"
    install("a-rival", RIVAL)
    now = with_parts()
    again = compose(str(tmp_path / STORED), registry=now)
    assert plugin_of(again.sampler.inner) == "cm3plugins"
    assert again.hash == recipe.hash
    inner = in_full(again, now).to_dict()["sampler"]["inner"]
    assert inner["name"] == "bundled/cfg"
    assert again.to_dict()["sampler"]["inner"]["name"] == "cfg"
    with pytest.raises(
        PluginError, match=r"sampler\.inner\.name: .*several plugins: a-rival, bundled"
    ):
        compose("tiny", INNER, registry=now)


def test_a_component_whose_part_is_gone_is_missing(install: Install) -> None:
    install("a-rival", RIVAL)
    there = with_parts()
    recipe = compose("tiny", [INNER[0], "sampler.inner=a-rival/cfg"], registry=there)
    writer = Writer(providers_of(recipe, there))
    here = with_parts(disabled="a-rival")
    with pytest.raises(PluginError, match="which is not in use"):
        stored_recipe(recipe.to_yaml(), here, label="stored", writer=writer)
    again = stored_recipe(recipe.to_yaml(), here, label="stored", writer=writer, lenient=True)
    assert again.hash == recipe.hash
    with pytest.raises(PluginError, match=r"stored: sampler\.inner\.name: the sampler 'cfg' was "):
        section(again, "sampler")
