"""The JSON Schema of recipes: it takes every recipe that there is, and refuses what `cm3 recipe check` refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf

from cm3apps.catalog import keys_of
from cm3apps.cli.main import main
from cm3apps.recipe_schema import recipe_schema
from cm3core.config.schema import hints
from cm3core.errors import CM3Error
from cm3core.interfaces.component import ranges_of
from cm3core.plugins.discovery import load_registry
from cm3core.plugins.registry import Registry
from cm3core.recipe import compose, list_recipes
from cm3core.recipe.layers import override_layer, parse
from cm3core.recipe.sections import FIXED_SECTIONS
from messages import tells
from profiles import examples

ROOT = Path(__file__).parents[2]
REGISTRY = load_registry()


@cache
def schema() -> dict[str, Any]:
    return json.loads(json.dumps(recipe_schema(REGISTRY)))


@cache
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def is_valid(values: object) -> bool:
    return bool(validator().is_valid(values))


def is_composed(*overrides: str) -> bool:
    """Whether `cm3 recipe check` finds nothing wrong in the values."""
    try:
        compose("tiny", overrides, registry=REGISTRY).check()
    except CM3Error:
        return False
    return True


def recipe_texts() -> Iterator[tuple[str, str]]:
    """(label, text) of every shipped recipe, of those that they extend, of the examples', and of the pages'."""
    folders = {path.parent for recipe in list_recipes() for path in [recipe.path]}
    for folder in sorted(folders):
        for path in sorted(folder.rglob("*.yaml")):
            yield f"recipes/{path.relative_to(folder)}", path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "examples").rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if re.search(r"^(extends|train|dataset):", text, re.MULTILINE):
            yield str(path.relative_to(ROOT)), text
    for page in sorted((ROOT / "docs").rglob("*.md")):
        blocks = re.findall(
            r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        )
        for text in blocks:
            if re.search(r"^extends:", text, re.MULTILINE):
                yield str(page.relative_to(ROOT)), text


TEXTS = list(recipe_texts())


@pytest.mark.parametrize(("label", "text"), TEXTS, ids=[label for label, _ in TEXTS])
def test_every_recipe_is_valid(label: str, text: str) -> None:
    values = parse(text, label)
    assert [error.message for error in validator().iter_errors(values)] == []


def test_there_are_recipes_of_all_places() -> None:
    assert {"recipes", "examples", "docs"} <= {label.partition("/")[0] for label, _ in TEXTS}


def components() -> Iterator[tuple[str, str]]:
    for kind, row in REGISTRY.kinds.items():
        for name in REGISTRY.names(kind):
            if not row.key:
                yield kind, name


@pytest.mark.parametrize("kind", REGISTRY.kinds)
def test_every_component_with_all_its_values(kind: str) -> None:
    """The section that `cm3 describe` shows, and the short form, in both spellings of the name."""
    for name in REGISTRY.names(kind):
        config_class = REGISTRY.config_class(kind, name)
        [owner, *_] = REGISTRY.owners(kind, name)
        given = {
            key.name: key.default
            for key in keys_of(config_class)
            if "." not in key.name and not key.required and _is_complete(key.default)
        }
        for chosen in (name, f"{owner}/{name}"):
            wanted = {"$ref": f"#/$defs/{kind}", "$defs": schema()["$defs"]}
            own = Draft202012Validator(wanted)
            assert own.is_valid(chosen)
            assert [error.message for error in own.iter_errors({"name": chosen, **given})] == []


def _is_complete(default: object) -> bool:
    """Whether a default is no component, whose name the registry knows."""
    return not isinstance(default, dict) or not default


@pytest.mark.parametrize("name", ["tiny", "quickstart", "cm3leon-350m"])
def test_a_composed_recipe_is_valid(name: str) -> None:
    text = compose(name, registry=REGISTRY).to_yaml()
    assert is_valid(OmegaConf.to_container(OmegaConf.create(text), resolve=False))


# ---- what is refused


@pytest.mark.parametrize(
    "override",
    [
        "trian.steps=5",
        "train.stepz=5",
        "decoder=cm3leom",
        "decoder=bundled/nobody",
        "decoder.d_modle=96",
        "decoder={name: cm3leon, d_modle: 96}",
        "decoder.d_model=wide",
        "decoder.d_model=0",
        "decoder=[cm3leon]",
        "train.batch_rows=0",
        "train.batch_rows=1.5",
        "train.batch_rows=true",
        "train.optimizer=sgd",
        "train.betas=[a, b]",
        "train.betas=0.9",
        "train.trackers=[nobody]",
        "train=3",
        "generate.parallel.method=medusa",
        "generate.parallel={windows: 4}",
        "sampler={name: cfg, nucleus: 0.9}",
        "retriever={name: hybrid, parts: {a: bm52}}",
        "retriever={name: hybrid, parts: {a: {name: bm25, k7: 1}}}",
        "data.max_text_tokens=null",
        "name=[a]",
    ],
)
def test_what_both_refuse(override: str) -> None:
    values = override_layer([override], REGISTRY.kinds).values
    assert not is_valid(values)
    assert not is_composed(override)


@pytest.mark.parametrize(
    "override",
    [
        "decoder.d_model=96",
        "decoder={name: bundled/cm3leon, context_length: 384}",
        "sampler=cfg",
        "sampler=null",
        "sampler={name: cfg, guidance_scale: 3}",
        "train.warmup_steps=${train.seed}",
        "train.steps=null train.minutes=5",
        "train.clip_norm=.inf",
        "train.trackers=[tensorboard]",
        "train.trackers=[]",
        "generate.parallel=off",
        "generate.parallel={window: 8}",
    ],
)
def test_what_both_take(override: str) -> None:
    values = override_layer(override.split(" ") if "{" not in override else [override]).values
    assert [error.message for error in validator().iter_errors(values)] == []
    assert is_composed(*(override.split(" ") if "{" not in override else [override]))


def numbers() -> list[tuple[str, str, str, float, float, type]]:
    """(kind, name, key, smallest, largest, type) of every numeric key with a range."""
    found = []
    sections: list[tuple[str, str, type[Any], Any]] = [
        (kind, name, config_class, ranges_of(config_class))
        for kind, name in components()
        for config_class in [REGISTRY.config_class(kind, name)]
    ]
    sections += [(name, "", own, own.ranges) for name, own in FIXED_SECTIONS.items()]
    for kind, name, config_class, ranges in sections:
        annotations = hints(config_class)
        for key, (least, most) in ranges.items():
            if annotations.get(key) in (int, float):
                found.append((kind, name, key, least, most, annotations[key]))
    return found


@pytest.mark.slow
@settings(max_examples=examples(40))
@given(st.sampled_from(numbers()), st.integers(1, 1000), st.booleans())
def test_a_number_out_of_range_is_refused_by_both(
    number: tuple[str, str, str, float, float, type], beyond: int, low: bool
) -> None:
    kind, name, key, least, most, _ = number
    value = least - beyond if low else most + max(beyond, abs(most))
    if abs(value) == float("inf"):
        value = least - beyond
    section = {key: value} | ({"name": name} if name else {})
    assert not is_valid({kind: section})
    own = {} if not name else {"name": name}
    assert is_valid({kind: {**own, key: least}})
    arguments = [f"{kind}.{key}={value!r}", *([f"{kind}={name}"] if name else [])]
    assert not is_composed(*arguments)


@given(
    st.sampled_from(list(components())),
    st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12),
)
def test_an_unknown_key_is_refused_by_both(component: tuple[str, str], key: str) -> None:
    kind, name = component
    known = {*hints(REGISTRY.config_class(kind, name)), "name"}
    if key in known:
        return
    assert not is_valid({kind: {"name": name, key: 1}})
    assert not is_composed(f"{kind}={name}", f"{kind}.{key}=1")


@given(st.sampled_from(list(components())), st.sampled_from(["{a: [b]}", "[[1]]", "[{}]"]))
def test_a_value_of_no_type_is_refused_by_both(component: tuple[str, str], value: str) -> None:
    """No scalar key holds a mapping of lists or a list of lists."""
    kind, name = component
    scalars = [
        key
        for key, annotation in hints(REGISTRY.config_class(kind, name)).items()
        if annotation in (int, float, str, bool)
    ]
    for key in scalars[:3]:
        overrides = [f"{kind}={name}", f"{kind}.{key}={value}"]
        assert not is_valid(override_layer(overrides, REGISTRY.kinds).values)
        assert not is_composed(*overrides)


def test_notes_and_names() -> None:
    assert is_valid({"x-mine": {"anything": [1]}, "extends": ["tiny", "./mine.yaml"], "name": "a"})
    assert not is_valid({"mine": 1})
    assert not is_valid({"extends": [5]})


def test_keys_have_types_ranges_defaults_and_descriptions() -> None:
    key = schema()["$defs"]["sampler/cfg"]["properties"]["top_k"]
    assert key["anyOf"][0] == {
        "type": "integer",
        "minimum": 0,
        "maximum": key["anyOf"][0]["maximum"],
    }
    assert key["default"] == 0
    assert "description" in key
    missing = [
        f"{place}.{name}"
        for place, definition in schema()["$defs"].items()
        if "/" in place
        for name, key in definition["properties"].items()
        if name != "name" and not key.get("description")
    ]
    assert missing == []


# ---- the command


def test_it_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    path = tmp_path / "recipe.schema.json"
    assert main(["recipe", "schema", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert json.loads(path.read_text(encoding="utf-8")) == printed == schema()


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    assert main(["recipe", "schema", "-o", str(path / "schema.json")]) == 2
    assert tells(capsys.readouterr().err, "error: ... file")
    assert path.read_text() == "mine"


PLUGIN = '''
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import SamplerConfig
CM3_API = 1

@dataclass(kw_only=True)
class MineConfig(SamplerConfig):
    """Mine.

    Args:
        heat: how hot it is.
    """
    ranges = {"heat": (0, 9)}
    renamed = {"warmth": "heat"}
    heat: float = 1.0
    def build(self, *arguments, **named): raise NotImplementedError

@hookimpl
def cm3_samplers(): return {"mine": MineConfig, "cfg": MineConfig}
'''


def test_components_of_a_plugin_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN, encoding="utf-8")
    registry: Registry = load_registry([path], environ={})
    own = Draft202012Validator(recipe_schema(registry))
    assert own.is_valid({"sampler": {"name": "mine", "heat": 9}})
    assert own.is_valid({"sampler": {"name": "mine/mine", "warmth": 2}})
    assert own.is_valid({"sampler": "mine"})
    assert not own.is_valid({"sampler": {"name": "mine", "heat": 10}})
    # two plugins provide it, so it needs a full name
    assert not own.is_valid({"sampler": "cfg"})
    assert own.is_valid({"sampler": {"name": "mine/cfg", "heat": 1}})
    assert own.is_valid({"sampler": {"name": "bundled/cfg", "guidance_scale": 1}})
    assert not own.is_valid({"sampler": {"name": "bundled/cfg", "heat": 1}})
