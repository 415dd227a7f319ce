"""A checkpoint stores who provided its components: names keep their meaning whatever is installed
later, and who draws needs nothing that only training does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cm3core
from cm3core.errors import CheckpointError, PluginError
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.registry import COMPONENTS, PLUGINS
from cm3core.recipe import Recipe, compose
from cm3run.checkpoint import export_model, latest_checkpoint, read_recipe
from cm3run.checkpoint.carried import CARRIED
from cm3run.training import train
from messages import tells
from throwaway_plugins import Install, uninstall

PARTS = Path(__file__).parents[2] / "fixtures" / "train"
UL2 = """\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3plugins.objectives.causal import CausalObjectiveConfig

CM3_API = 1

@dataclass(kw_only=True)
class UL2Config(CausalObjectiveConfig):
    rate: float = 0.5

@hookimpl
def cm3_objectives():
    return {"ul2": UL2Config}
"""
Run = tuple[Path, Install, Path]


def registry_now() -> Registry:
    return load_registry([PARTS / "train_parts.py"])


def recipe_of(registry: Registry, folder: Path, objective: str = "ul2", steps: int = 1) -> Recipe:
    return compose(
        str(PARTS / "squares.yaml"),
        [
            f"objective={objective}",
            f"train.steps={steps}",
            "train.validation_splits=[]",
            f"data.cache_dir={folder / 'cache'}",
        ],
        registry=registry,
    )


@pytest.fixture
def run(install: Install, tmp_path: Path) -> Run:
    """A run whose objective a plugin provides; `install`, and where it writes."""
    install("cm3-ul2", UL2, points="ul2 = throwaway_cm3_ul2", version="0.1.0")
    registry = registry_now()
    out = tmp_path / "runs" / "ul2"
    train(recipe_of(registry, tmp_path), out, registry, progress=False)
    return out, install, tmp_path


def draws(folder: Path) -> bool:
    model = cm3core.load(folder, registry=registry_now())
    (picture,) = model.generate("red", 1, seed=1)
    return picture.codes.codes.shape == (16,)


def test_what_is_stored(run: Run) -> None:
    out, _, folder = run
    newest = latest_checkpoint(out)
    assert newest is not None
    exported = export_model(newest, folder / "model")
    for place in (out, newest, exported):
        stored = json.loads((place / COMPONENTS).read_text())
        assert stored["objective"] == {
            "name": "ul2",
            "plugin": "ul2",
            "distribution": "cm3-ul2",
            "version": "0.1.0",
        }
        assert stored["decoder"]["distribution"] == "cm3leon"
        assert stored["dataset"] == {
            "name": "squares",
            "plugin": "train_parts",
            "distribution": "",
            "version": "",
        }


def test_who_draws_needs_no_objective(run: Run) -> None:
    out, _, folder = run
    then = read_recipe(latest_checkpoint(out) or out, registry_now())
    holes = cm3core.load(out, registry=registry_now()).components.serializer.max_spans
    uninstall(folder, "cm3-ul2")
    assert draws(out)
    assert cm3core.load(out, registry=registry_now()).components.serializer.max_spans == holes
    assert holes < then.vocabulary.num_sentinels
    now = read_recipe(latest_checkpoint(out) or out, registry_now())
    assert (now.hash, now.to_yaml()) == (then.hash, then.to_yaml())
    for use in ("check", "build", "rate"):
        with pytest.raises(PluginError) as caught:
            getattr(now.objective, use)()
        assert tells(caught.value.cause, "the objective 'ul2' was provided by ul2 0.1.0")


def test_who_trains_does(run: Run) -> None:
    out, install, folder = run
    uninstall(folder, "cm3-ul2")
    with pytest.raises(PluginError, match=r"was provided by ul2 0\.1\.0 \(pip install cm3-ul2\)"):
        compose(str(out / "recipe.yaml"), registry=registry_now())
    # another plugin's objective of that name is another objective
    install("other", UL2.replace("0.5", "0.7"))
    with pytest.raises(PluginError, match=r"was provided by ul2 0\.1\.0 \(pip install cm3-ul2\)"):
        compose(str(out / "recipe.yaml"), registry=registry_now())
    assert draws(out)
    registry = registry_now()
    with pytest.raises(CheckpointError, match="objective's plugin: 'one that is not in use' in"):
        train(
            recipe_of(registry, folder, steps=2),
            out,
            registry,
            progress=False,
        )


def test_a_plugin_that_is_installed_later_changes_nothing(run: Run) -> None:
    out, install, folder = run
    install("a-rival", UL2.replace('"ul2"', '"ul2": UL2Config, "cm3leon"').replace("0.5", "0.7"))
    registry = registry_now()
    recipe = compose(str(out / "recipe.yaml"), registry=registry)
    assert type(recipe.objective).__module__ == "throwaway_cm3_ul2"
    assert draws(out)
    with pytest.raises(PluginError, match="comes from several plugins: a-rival, ul2"):
        recipe_of(registry, folder)
    resumed = recipe_of(registry, folder, "ul2/ul2", steps=2)
    assert train(resumed, out, registry, progress=False).step == 2
    with pytest.raises(CheckpointError, match="objective"):
        train(recipe_of(registry, folder, "a-rival/ul2"), out, registry, progress=False)


def test_another_version_without_it(run: Run) -> None:
    out, install, folder = run
    uninstall(folder, "cm3-ul2")
    install(
        "cm3-ul2",
        UL2.replace('"ul2"', '"ul3"'),
        module="throwaway_ul3",
        points="ul2 = throwaway_ul3",
        version="0.2.0",
    )
    assert draws(out)
    with pytest.raises(PluginError) as caught:
        compose(str(out / "recipe.yaml"), registry=registry_now())
    assert tells(caught.value.cause, "the objective 'ul2' ... 0.1.0 ... 0.2.0")


def test_the_distribution_may_rename_its_plugin(run: Run) -> None:
    out, install, folder = run
    uninstall(folder, "cm3-ul2")
    install("cm3_UL2", UL2, points="renamed = throwaway_cm3_UL2", version="0.2.0")
    assert compose(str(out / "recipe.yaml"), registry=registry_now()).objective is not None


def test_a_checkpoint_from_before_providers_were_stored(run: Run) -> None:
    out, install, folder = run
    newest = latest_checkpoint(out)
    assert newest is not None
    for place in (out, newest):
        (place / COMPONENTS).unlink()
    install("a-rival", UL2.replace("0.5", "0.7"))
    recipe = read_recipe(newest, registry_now())  # only one of the two was in use then
    assert type(recipe.objective).__module__ == "throwaway_cm3_ul2"
    for name in ("cm3-ul2", "a-rival"):
        uninstall(folder, name)
    assert draws(out)
    with pytest.raises(PluginError) as caught:
        read_recipe(newest, registry_now()).objective.check()  # type: ignore[union-attr]  # is there
    assert caught.value.cause == "no objective is called 'ul2'"
    assert tells(caught.value.next_step, "... the plugin 'ul2' 0.1.0")
    (newest / PLUGINS).write_text("[")
    assert draws(out)


@pytest.mark.parametrize(
    "spoil",
    [
        "[",
        "[]",
        '{"objective": 3}',
        '{"objective": {"name": "ul2"}}',
        '{"objective": {"name": "ul2", "plugin": "ul2", "distribution": "x -i http://evil", '
        '"version": "1"}}',
        '{"objective": ' * 100_000,
    ],
)
def test_a_damaged_or_hostile_file_is_refused(spoil: str, spoiled: Path) -> None:
    (spoiled / COMPONENTS).write_text(spoil)
    with pytest.raises(CheckpointError) as caught:
        read_recipe(spoiled, registry_now())
    assert caught.value.place == str(spoiled / COMPONENTS)


def test_a_needed_component_is_asked_for(spoiled: Path) -> None:
    registry = load_registry()  # without the file that provides tokenizers and data
    with pytest.raises(CheckpointError, match=r"its code is in the checkpoint: .*train_parts\.py"):
        cm3core.load(spoiled, registry=registry)
    shutil.rmtree(spoiled / CARRIED)
    with pytest.raises(PluginError) as caught:
        cm3core.load(spoiled, registry=registry)
    assert tells(caught.value.cause, "the text_tokenizer 'characters' ... train_parts")


def test_a_sampler_is_needed_to_draw(spoiled: Path) -> None:
    recipe = (spoiled / "recipe.yaml").read_text()
    (spoiled / "recipe.yaml").write_text(recipe.replace("name: top_p", "name: gone"))
    stored = json.loads((spoiled / COMPONENTS).read_text())
    stored["sampler"] = {
        "name": "gone",
        "plugin": "gone",
        "distribution": "cm3-gone",
        "version": "2.0",
    }
    (spoiled / COMPONENTS).write_text(json.dumps(stored))
    model = cm3core.load(spoiled, registry=registry_now())
    for use in (model.sampler_config, lambda: model.generate("red", 1, seed=1)):
        with pytest.raises(
            PluginError, match=r"was provided by gone 2\.0 \(pip install cm3-gone\)"
        ):
            use()
