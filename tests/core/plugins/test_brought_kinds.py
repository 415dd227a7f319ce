"""Kinds that plugins bring: what is refused, who provides components of them, and models whose recipes
have sections of them."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from cm3core.errors import CheckpointError, PluginError, RecipeError
from cm3core.interfaces import ComponentConfig
from cm3core.plugins import KINDS, Registry, load_registry
from cm3core.plugins.describe import RESERVED
from cm3core.plugins.discovery import FILE_MODULE, add_plugin
from cm3core.plugins.registry import PluginInfo, built
from cm3core.recipe import compose
from cm3core.recipe.recipe import MissingComponent
from cm3core.recipe.sections import FIXED_SECTIONS
from cm3run.checkpoint import export_model, read_recipe
from cm3run.model import load
from cm3run.training import train
from squares import PARTS
from throwaway_plugins import Install, info_of

HEAD = """
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from cm3core.hookspecs import hookimpl
from cm3core.interfaces import ComponentConfig
from cm3core.plugins import Kind

CM3_API = 1


@dataclass(kw_only=True)
class SoundConfig(ComponentConfig):
    kind: ClassVar[str] = "sound"

    def build(self):
        raise NotImplementedError


class Sound(ABC):
    pass


"""
ROW = """Kind("cm3_sounds", SoundConfig, "Sound", "", "sound", summary="Sounds")"""
BRINGS = f'''{HEAD}
@hookimpl
def cm3_kinds():
    return [{ROW}]


@dataclass(kw_only=True)
class BeepConfig(SoundConfig):
    """A beep.

    Args:
        pitch: in Hz.
    """

    pitch: int = 440

    def build(self):
        return Beep()


class Beep(Sound):
    pass


@hookimpl
def cm3_sounds():
    return {{"beep": BeepConfig}}
'''
#: Of another plugin, whose name sorts before.
PROVIDES = '''
from dataclasses import dataclass

from cm3core.hookspecs import hookimpl
from throwaway_sounds import Sound, SoundConfig

CM3_API = 1


@dataclass(kw_only=True)
class HornConfig(SoundConfig):
    """A horn."""

    def build(self):
        return "no sound"


@hookimpl
def cm3_sounds():
    return {"horn": HornConfig}
'''


def plugin(folder: Path, text: str, name: str = "sounding") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def test_other_plugins_provide_components_of_it(install: Install) -> None:
    """Whatever their names are, and only in this registry."""
    install("sounds", BRINGS)
    install("a-horn", PROVIDES)
    registry = load_registry(environ={})
    assert registry.names("sound") == ["beep", "horn"]
    assert info_of(registry, "sounds").kinds == ["sound"]
    assert list(registry.kinds) == [*KINDS, "prompt_rewriter", "finisher", "sound"]
    assert "sound" not in KINDS
    assert "sound" not in Registry().kinds
    config = registry.config_class("sound", "a-horn/horn")()
    with pytest.raises(PluginError, match="it returned str, not a Sound"):
        built(config.build(), config, registry)  # type: ignore[attr-defined]  # every config has one


def test_without_the_plugin_that_brings_it_the_hook_does_not_exist(install: Install) -> None:
    install("sounds", BRINGS)
    install("a-horn", PROVIDES)
    install("b-horn", PROVIDES.replace("@hookimpl", "@hookimpl(optionalhook=True)"))
    registry = load_registry(environ={"CM3_DISABLE_PLUGINS": "sounds"})
    lost, works = info_of(registry, "a-horn"), info_of(registry, "b-horn")
    assert lost.status == "broken"
    assert lost.reason == "implements the hook 'cm3_sounds', which does not exist"
    assert "or write @hookimpl(optionalhook=True)" in lost.traceback
    assert (works.status, works.components) == ("loaded", {})
    with pytest.raises(RecipeError) as error:
        compose("tiny", ["sound=beep"], registry=registry)
    assert error.value.cause == "is not a section of a recipe"
    assert "the plugin 'sounds' is disabled" in error.value.next_step


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ((f"[{ROW}]", "'sound'"), "cm3_kinds returned 'sound'"),
        ((f"[{ROW}]", "['sound']"), "cm3_kinds returned ['sound']"),
        (('"cm3_sounds"', '"sounds"'), "its hook is called 'sounds'"),
        (('"cm3_sounds"', '"cm3_samplers"'), "the hook 'cm3_samplers' exists already"),
        (('"cm3_sounds"', '"cm3_commands"'), "the hook 'cm3_commands' exists already"),
        (('= "sound"', '= "sampler"'), "the kind 'sampler' exists already"),
        (('= "sound"', '= "train"'), "the kind 'train' exists already"),
        (('= "sound"', '= "a sound"'), "the kind is called 'a sound'"),
        (('"Sound"', '"Noise"'), "has no class 'Noise'"),
        (('SoundConfig, "', 'Sound, "'), "the class Sound is not a base of configs"),
        (('"", "sound"', '"kit", "sound"'), "its kit is 'kit'"),
        (('summary="Sounds"', 'summary=" "'), "has no words or no summary"),
        ((f"[{ROW}]", f"[{ROW}, {ROW}]"), "the kind 'sound' exists already"),
        (("@dataclass(kw_only=True)\nclass BeepConfig", "class BeepConfig"), "is not a dataclass"),
    ],
)
def test_a_wrong_row_is_refused(change: tuple[str, str], cause: str, tmp_path: Path) -> None:
    assert change[0] in BRINGS
    with pytest.raises(PluginError) as error:
        load_registry([plugin(tmp_path, BRINGS.replace(*change))], environ={})
    assert cause in error.value.cause


def test_a_kind_of_a_broken_plugin_is_gone(install: Install) -> None:
    install("sounds", BRINGS.replace('"beep": BeepConfig', '"beep": 3'))
    registry = load_registry(environ={})
    assert info_of(registry, "sounds").status == "broken"
    assert "sound" not in registry.kinds


def test_two_plugins_with_one_kind(install: Install) -> None:
    install("sounds", BRINGS)
    install("zounds", BRINGS)
    registry = load_registry(environ={})
    assert registry.names("sound") == ["beep"]
    assert info_of(registry, "zounds").reason == "the kind 'sound' exists already"


def test_names_of_sections_are_reserved() -> None:
    assert set(RESERVED) == {*FIXED_SECTIONS, "extends", "name", "sweep"}


def test_a_plugin_that_is_added_later_brings_one(tmp_path: Path) -> None:
    registry = load_registry(environ={})
    path = plugin(tmp_path, BRINGS)
    from cm3core.plugins import plugin_of_file

    add_plugin(registry, PluginInfo("sounding", "", str(path)), lambda: plugin_of_file(path))
    recipe = compose("tiny", ["sound=beep", "sound.pitch=220"], registry=registry)
    assert recipe.section("sound") == registry.config_class("sound", "beep")(pitch=220)  # type: ignore[call-arg]  # the plugin's own key


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model whose recipe has a section of a kind of a plugin file."""
    folder = tmp_path_factory.mktemp("model")
    path = plugin(folder, BRINGS)
    registry = load_registry([PARTS / "train_parts.py", path], environ={})
    overrides = ["train.steps=1", "train.validation_splits=[]", "sound=beep", "sound.pitch=220"]
    recipe = compose(
        str(PARTS / "squares.yaml"),
        [*overrides, f"data.cache_dir={folder / 'cache'}"],
        registry=registry,
    )
    recipe.check()
    train(recipe, folder / "run", registry, progress=False)
    train(recipe, folder / "run", registry, progress=False)  # is not another recipe
    return export_model(folder / "run", folder / "exported", "fp32")


@pytest.mark.slow
def test_a_model_opens_without_it(model: Path, tmp_path: Path) -> None:
    """Recipe, hash and file stay what they were; what needs the section is told who brought it."""
    without = load_registry([PARTS / "train_parts.py"], environ={})
    stored = (model / "recipe.yaml").read_text()
    recipe = load(model, registry=without).recipe
    assert "\nsound:\n  name: beep\n  pitch: 220\n" in stored
    assert recipe.to_yaml() == stored
    section = recipe.section("sound")
    assert isinstance(section, MissingComponent)
    with pytest.raises(
        CheckpointError, match="needs a plugin that is not loaded; its code is in the checkpoint"
    ):
        section.refuse()
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    (copy / "plugins" / "sounding.py").unlink()
    other = read_recipe(copy, without).section("sound")
    assert isinstance(other, MissingComponent)
    with pytest.raises(
        PluginError,
        match="belongs to a plugin that is not in use; its component was provided by sounding",
    ):
        other.refuse()


def test_a_trusted_file_brings_its_kind(model: Path) -> None:
    sys.modules.pop(f"{FILE_MODULE}sounding", None)
    without = load_registry([PARTS / "train_parts.py"], environ={})
    sha = hashlib.sha256(BRINGS.encode()).hexdigest()
    opened = load(model, registry=without, trust_plugins=[sha])
    section = opened.recipe.section("sound")
    assert isinstance(section, ComponentConfig)
    assert vars(section) == {"pitch": 220}
    assert "sound" in opened.components.registry.kinds
    assert "sound" not in without.kinds
