"""Composing recipes: layers, overrides, errors with place, cause and next step; and every shipped
recipe."""

from __future__ import annotations

import functools
import json
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import PluginError, RecipeError
from cm3core.interfaces import (
    DecoderConfig,
    ImageTokenizerConfig,
    RetrieverConfig,
    TextTokenizerConfig,
)
from cm3core.plugins import PluginInfo, Registry, load_registry
from cm3core.recipe import Recipe, compose, diff, list_recipes, recipe_from_yaml
from cm3core.recipe import sections as schema
from cm3core.recipe.library import description, header, recipes_directory
from cm3plugins.layouts.cm3leon import CM3LeonVocabulary


@dataclass(kw_only=True)
class ByteConfig(TextTokenizerConfig):
    lower: bool = False


@dataclass(kw_only=True)
class PairsConfig(TextTokenizerConfig):
    vocab_size: int
    path: str
    style: Literal["plain", "byte"] = "plain"


@dataclass(kw_only=True)
class Block:
    width: int = 4
    mult: tuple[int, ...] = (1, 2)


@dataclass(kw_only=True)
class PlainDecoderConfig(DecoderConfig):
    num_layers: int = 2
    d_model: int = 64
    scale: float | None = None
    block: Block = field(default_factory=Block)
    rates: dict[str, float] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class SquareConfig(ImageTokenizerConfig):
    side: int = 4

    @property
    def grid(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def codebook_size(self) -> int:
        return 16


@dataclass(kw_only=True)
class NearRetrieverConfig(RetrieverConfig):
    pass


@functools.cache
def fakes() -> Registry:
    registry = Registry()
    registry.add(
        PluginInfo("fakes", "1", "tests"),
        {
            "text_tokenizer": {"byte": ByteConfig, "pairs": PairsConfig},
            "decoder": {"plain": PlainDecoderConfig},
            "image_tokenizer": {"square": SquareConfig},
            "retriever": {"near": NearRetrieverConfig},
        },
        {},
    )
    return registry


BASE = """\
# base: for tests
text_tokenizer: {name: pairs, vocab_size: 300, path: merges.json}
decoder: {name: plain, num_layers: 3}
train: {steps: 10}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")


def made(path: str = "base.yaml", *overrides: str) -> Recipe:
    return compose(path, overrides, registry=fakes())


def message(path: str = "base.yaml", *overrides: str) -> str:
    with pytest.raises((RecipeError, PluginError)) as caught:
        made(path, *overrides)
    return str(caught.value)


def test_plain_dataclasses_come_out(folder: Path) -> None:
    recipe = made(
        "base.yaml", "decoder.block.mult=[1, 2, 4]", "decoder.rates={image: 1}", "decoder.scale=2"
    )
    assert recipe.name == "base"
    assert isinstance(recipe.decoder, PlainDecoderConfig)
    assert recipe.decoder == PlainDecoderConfig(
        num_layers=3, block=Block(mult=(1, 2, 4)), rates={"image": 1.0}, scale=2.0
    )
    assert type(recipe.decoder.block.mult) is tuple
    assert type(recipe.decoder.scale) is float
    assert recipe.text_tokenizer == PairsConfig(vocab_size=300, path="merges.json")
    assert recipe.embedder is None
    assert list(recipe.components) == ["text_tokenizer", "decoder"]
    assert recipe.components["decoder"] == ("plain", recipe.decoder)
    assert (recipe.train.steps, recipe.train.betas) == (10, [0.9, 0.95])


def test_layers_apply_left_to_right_and_the_file_itself_last(folder: Path) -> None:
    write(folder, "wide.yaml", "decoder: {d_model: 128, num_layers: 5}")
    write(
        folder,
        "mine.yaml",
        "extends: [./base.yaml, ./wide.yaml]\ndecoder: {num_layers: 7, block: {width: 9}}",
    )
    recipe = made("mine.yaml", "train.seed=4")
    assert isinstance(recipe.decoder, PlainDecoderConfig)
    assert (recipe.decoder.num_layers, recipe.decoder.d_model, recipe.decoder.block) == (
        7,
        128,
        Block(width=9),
    )
    expected = {
        "decoder.name": "base.yaml",
        "decoder.num_layers": "mine.yaml",
        "decoder.d_model": "wide.yaml",
        "decoder.block.width": "mine.yaml",
        "decoder.block.mult": "default",
        "train.seed": "command line",
        "train.steps": "base.yaml",
        "train.minutes": "default",
    }
    assert {key: recipe.origins[key] for key in expected} == expected
    assert set(recipe.flat()) >= {"decoder.block.width", "decoder.rates"}


def test_a_file_that_two_others_extend_applies_once(folder: Path) -> None:
    write(folder, "a.yaml", "extends: ./base.yaml\ndecoder: {num_layers: 8}")
    write(folder, "b.yaml", "extends: ./base.yaml\ndecoder: {d_model: 32}")
    write(folder, "mine.yaml", "extends: [./a.yaml, ./b.yaml]")
    assert made("mine.yaml").decoder == PlainDecoderConfig(num_layers=8, d_model=32)


def test_a_changed_name_replaces_the_section_an_equal_one_merges(folder: Path) -> None:
    write(
        folder,
        "swap.yaml",
        "extends: [./base.yaml]\ntext_tokenizer: {name: byte}\ndecoder: {name: plain, d_model: 32}",
    )
    recipe = made("swap.yaml")
    assert recipe.text_tokenizer == ByteConfig()
    assert recipe.decoder == PlainDecoderConfig(num_layers=3, d_model=32)
    assert [key for key in recipe.origins if key.startswith("text_tokenizer.")] == [
        "text_tokenizer.name",
        "text_tokenizer.lower",
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["text_tokenizer=byte", "text_tokenizer.lower=true"],
        ["text_tokenizer.lower=true", "text_tokenizer=byte"],
        ["text_tokenizer.lower=true", "text_tokenizer=fakes/byte"],
    ],
)
def test_the_shorthand_works_in_any_order(folder: Path, overrides: list[str]) -> None:
    assert made("base.yaml", *overrides).text_tokenizer == ByteConfig(lower=True)


def test_null_removes_a_section(folder: Path) -> None:
    recipe = made("base.yaml", "text_tokenizer=null")
    assert recipe.text_tokenizer is None
    assert not any(key.startswith("text_tokenizer") for key in recipe.origins)


OVERRIDES = [
    "text_tokenizer=byte",
    "text_tokenizer.lower=true",
    "decoder.num_layers=6",
    "decoder.block.width=5",
    "decoder.rates.image=0.5",
    "decoder.rates.text=2",
    "train.seed=3",
    "train.betas=[0.9, 0.98]",
    "decoder.d_model=${decoder.num_layers}",
    "vocabulary.num_text=300",
    "train.steps=null",
    "train.minutes=1.5",
]


@given(order=st.permutations(OVERRIDES), count=st.integers(0, len(OVERRIDES)))
def test_every_order_of_overrides_composes_the_same_recipe(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], count: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "permuted.yaml"
    path.write_text(BASE, encoding="utf-8")
    chosen = [
        item
        for item in order[:count]
        if item != "text_tokenizer.lower=true" or "text_tokenizer=byte" in order[:count]
    ]
    one, other = made(str(path), *chosen), made(str(path), *sorted(chosen))
    assert one == other
    assert (one.hash, one.to_yaml(), one.origins) == (other.hash, other.to_yaml(), other.origins)


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12
) | st.sampled_from(
    [
        "1e-3",
        "null",
        "yes",
        "???x",
        "${a.b}",
        "08",
        "1_0",
        "~",
        " a ",
        "#x",
        "a: b",
        "\\${x}",
        "0x1f",
        ".inf",
    ]
)


@given(
    path=TEXTS,
    tags=st.lists(TEXTS, max_size=3),
    scale=st.none() | st.floats(allow_nan=False),
    rates=st.dictionaries(TEXTS.filter(lambda key: "${" not in key), st.floats(0, 1), max_size=3),
    mult=st.lists(st.integers()),
)
def test_the_resolved_recipe_reads_back_equal(
    path: str, tags: list[str], scale: float | None, rates: dict[str, float], mult: list[int]
) -> None:
    recipe = Recipe(
        name="any",
        component_names={"text_tokenizer": "pairs", "decoder": "plain"},
        text_tokenizer=PairsConfig(vocab_size=3, path=path),
        decoder=PlainDecoderConfig(
            scale=scale, tags=tags, rates=rates, block=Block(mult=tuple(mult))
        ),
    )
    again = recipe_from_yaml(recipe.to_yaml(), fakes())
    assert again == recipe
    assert again.hash == recipe.hash
    assert diff(recipe, again) == []


def test_the_hash_is_of_the_settings_not_of_the_name(folder: Path) -> None:
    write(folder, "same.yaml", "extends: ./base.yaml\nname: called\n")
    one, other = made(), made("same.yaml")
    assert (one.name, other.name) == ("base", "called")
    assert one.hash == other.hash != made("base.yaml", "train.seed=1").hash
    assert len(one.hash) == 12
    assert diff(one, made("base.yaml", "train.seed=1", "text_tokenizer=byte")) == [
        ("text_tokenizer.name", "pairs", "byte"),
        ("text_tokenizer.vocab_size", 300, "(absent)"),
        ("text_tokenizer.path", "merges.json", "(absent)"),
        ("text_tokenizer.style", "plain", "(absent)"),
        ("train.seed", 0, 1),
        ("text_tokenizer.lower", "(absent)", False),
    ]


def test_interpolations_are_resolved(folder: Path) -> None:
    recipe = made(
        "base.yaml",
        "train.warmup_steps=${train.steps}",
        "text_tokenizer.path=x-${decoder.num_layers}.json",
    )
    assert recipe.train.warmup_steps == 10
    assert isinstance(recipe.text_tokenizer, PairsConfig)
    assert recipe.text_tokenizer.path == "x-3.json"
    assert "${" not in recipe.to_yaml()


FOREIGN = "a recipe reads other keys of the recipe only, no environment and no resolvers"


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}",
        "x-${oc.env:SECRET,none}-y",
        "${oc.decode:'1'}",
        "${train.${decoder.name}}",
        "${.seed}",
        "\\\\${oc.env:SECRET}",
    ],
)
def test_recipes_read_no_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Not in overrides, files or stored recipes; and the secret is in no message."""
    monkeypatch.setenv("SECRET", "hunter2")
    (folder / "mine.yaml").write_text(
        yaml.safe_dump({"extends": ["base.yaml"], "text_tokenizer": {"path": value}})
    )
    stored = made("base.yaml").to_yaml().replace("seed: 0", f"seed: {json.dumps(value)}")
    for call, place in (
        (
            lambda: made("base.yaml", f"text_tokenizer.path={value}"),
            "command line: text_tokenizer.path",
        ),
        (lambda: made("mine.yaml"), "mine.yaml: text_tokenizer.path"),
        (lambda: recipe_from_yaml(stored, fakes(), label="stored"), "stored: train.seed"),
    ):
        with pytest.raises(RecipeError) as caught:
            call()
        assert str(caught.value).startswith(f"{place}: holds ")
        assert FOREIGN in str(caught.value) or "no valid interpolation" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_an_escaped_interpolation_is_text(folder: Path) -> None:
    recipe = made("base.yaml", r"text_tokenizer.path=\${oc.env:HOME}")
    assert isinstance(recipe.text_tokenizer, PairsConfig)
    assert recipe.text_tokenizer.path == "${oc.env:HOME}"
    assert recipe_from_yaml(recipe.to_yaml(), fakes(), label="again") == recipe


ERRORS = {
    (
        "decoder.num_layer=3",
    ): "command line: decoder.num_layer: the decoder 'plain' has no key 'num_layer'\n"
    "  next: did you mean 'num_layers'?",
    (
        "decoder.block.widht=3",
    ): "command line: decoder.block.widht: the decoder 'plain', block, has no key 'widht'\n"
    "  next: did you mean 'width'?",
    (
        "trian.steps=3",
    ): "command line: trian: is not a section of a recipe\n  next: did you mean 'train'?",
    (
        "extends=[base]",
    ): "command line: extends: is for recipe files; the command line changes values of one recipe\n"
    "  next: write a file that begins with `extends: [base]`, and name it",
    (
        "decoder=plian",
    ): "command line: decoder.name: no decoder is called 'plian'\n  next: did you mean 'plain'?",
    (
        "decoder=torch.nn.Linear",
    ): "command line: decoder.name: no decoder is called 'torch.nn.Linear'\n"
    "  next: recipes name components, not Python classes; "
    "`cm3 --plugin FILE.py ...` registers a class from a file",
    (
        "decoder=[a]",
    ): "command line: decoder.name: is ['a'], expected the name of a component (plain)\n  next: correct the value",
    (
        "decoder.num_layers=six",
    ): "command line: decoder.num_layers: is 'six', expected int\n  next: correct the value",
    (
        "decoder.num_layers=true",
    ): "command line: decoder.num_layers: is True, expected int\n  next: correct the value",
    (
        "train.steps=1e3",
    ): "command line: train.steps: is 1000.0, expected int | None\n  next: write 1000",
    ("text_tokenizer.path=2024",): "command line: text_tokenizer.path: is 2024, expected str\n"
    "  next: write it in quotes: '\"2024\"'",
    (
        "text_tokenizer.style=bold",
    ): "command line: text_tokenizer.style: is 'bold', expected 'plain' or 'byte'\n"
    "  next: correct the value",
    (
        "train.betas=[0.9, high]",
    ): "command line: train.betas: is [0.9, 'high'] (in it, 'high' is not float), "
    "expected list[float]\n  next: correct the value",
    (
        "train=3",
    ): "command line: train: is 3, expected a mapping of keys to values\n  next: correct the value",
    (
        "retriever.num_retrieved=2",
    ): "command line: retriever.name: is missing: no layer before this one chose a component\n"
    "  next: name one: near",
    (
        "train.seed",
    ): "command line: train.seed: is not key=value\n  next: write section.key=value, e.g. train.steps=100",
    (
        "train.seed=1",
        "train.seed=2",
    ): "command line: train.seed: is given twice: train.seed=1 and train.seed=2\n"
    "  next: keep one of them",
    (
        "train.betas=[",
    ): "command line: train.betas=[: the value is not valid YAML\n  next: put it in quotes",
    (
        "train.seed=${train.sed}",
    ): "command line: train.seed: can't be resolved: Interpolation key 'train.sed' not found\n"
    "  next: correct the interpolation",
    (
        "train.seed=${train.schedule}",
    ): "command line: train.seed: is '${train.schedule}', which is 'cosine', expected int\n"
    "  next: correct the interpolation",
    (
        "text_tokenizer.path=???",
        "text_tokenizer.vocab_size=???",
    ): "recipe 'base': lacks values for text_tokenizer.vocab_size, text_tokenizer.path\n"
    "  next: give them in the recipe or in the command, e.g. cm3 train RECIPE "
    "text_tokenizer.vocab_size=... text_tokenizer.path=...",
}


@pytest.mark.parametrize("overrides", ERRORS)
def test_errors_of_the_command_line(folder: Path, overrides: tuple[str, ...]) -> None:
    assert message("base.yaml", *overrides) == ERRORS[overrides]


FILE_ERRORS = {
    "decoder: {num_layer: 3}": "mine.yaml: decoder.num_layer: the decoder 'plain' has no key 'num_layer'\n"
    "  next: did you mean 'num_layers'?",
    "train: {steps: 1}\ntrain: {steps: 2}": "mine.yaml, line 3: is not valid YAML: found duplicate key train\n"
    "  next: correct the line",
    "train: [": "mine.yaml, line 3: is not valid YAML: expected the node content, but found '<stream end>'\n"
    "  next: correct the line",
    "train: {1: 2}": "mine.yaml: train.1: the key 1 is not text\n  next: put it in quotes",
    "train: {seed: !!python/object/apply:os.getpid []}": "mine.yaml, line 2: is not valid YAML: "
    "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getpid'\n  next: correct the line",
    "decoder: {_target_: os.system}": "mine.yaml: decoder._target_: the decoder 'plain' has no key '_target_'\n"
    "  next: known: block, context_length, d_model, num_layers, rates, scale, tags",
}


def test_nesting_without_end(folder: Path) -> None:
    write(folder, "mine.yaml", "train: " + "[" * 20_000)
    assert (
        message("mine.yaml")
        == "mine.yaml: is not a recipe: it is nested too deeply\n  next: correct the file"
    )


@pytest.mark.parametrize("text", FILE_ERRORS)
def test_errors_name_the_file(folder: Path, text: str) -> None:
    write(folder, "mine.yaml", f"extends: ./base.yaml\n{text}\n")
    assert message("mine.yaml") == FILE_ERRORS[text]


def test_an_error_names_the_layer_and_not_the_recipe_that_was_asked_for(folder: Path) -> None:
    write(folder, "bad.yaml", "decoder: {depth: 3}")
    write(folder, "mine.yaml", "extends: [./base.yaml, ./bad.yaml]\ndecoder: {num_layers: 3}")
    assert message("mine.yaml").startswith(
        "bad.yaml: decoder.depth: the decoder 'plain' has no key 'depth'"
    )


def test_bad_extends(folder: Path) -> None:
    write(folder, "a.yaml", "extends: [./b.yaml]")
    write(folder, "b.yaml", "extends: [./a.yaml]")
    assert message("a.yaml") == (
        "a.yaml: extends: recipes extend each other in a circle: a.yaml -> b.yaml -> a.yaml\n"
        "  next: remove one link"
    )
    write(folder, "c.yaml", "extends: [./none.yaml]")
    assert message("c.yaml") == (
        "c.yaml: extends: there is no file none.yaml\n"
        "  next: correct the path, or name a shipped recipe (cm3 recipe list)"
    )
    write(folder, "d.yaml", "extends: {a: b}")
    assert message("d.yaml") == (
        "d.yaml: extends: is {'a': 'b'}, expected a list of recipe names or paths\n"
        "  next: write extends: [a, b]"
    )


NOT_PLAIN = ["../../x", "a/b", "/x", "..", ".hidden", "a b", "a\\b", "x\n", "", "${a.b}", "n" * 101]


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_name_that_is_no_plain_one_is_refused(folder: Path, name: str) -> None:
    stored = made().to_yaml().replace("name: base\n", f"name: {json.dumps(name)}\n", 1)
    rule = "must be 1 to 100 letters, digits, '_', '-' and '.', not starting with '.'"
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    expected = f": name: is {shown!r}, {rule}\n  next: write a plain name"
    write(folder, "mine.yaml", f"extends: [./base.yaml]\nname: {json.dumps(name)}")
    write(folder, "below.yaml", "extends: [./mine.yaml]\nname: plain")
    for read, place in (
        (lambda: made("mine.yaml"), "mine.yaml"),
        (lambda: made("below.yaml"), "mine.yaml"),
        (lambda: made("base.yaml", f"name={json.dumps(name)}"), "command line"),
        (lambda: recipe_from_yaml(stored, fakes(), label="run/recipe.yaml"), "run/recipe.yaml"),
    ):
        with pytest.raises(RecipeError) as caught:
            read()
        if "${" not in name:  # that is an interpolation's own error
            assert str(caught.value) == place + expected


def test_a_file_whose_name_is_not_plain_must_state_one(folder: Path) -> None:
    write(folder, "my recipe.yaml", "extends: [./base.yaml]")
    assert message("my recipe.yaml") == (
        "my recipe.yaml: name: is 'my recipe', must be 1 to 100 letters, digits, '_', '-' and '.', "
        "not starting with '.'\n  next: add a plain name (name: mine), or rename the file"
    )
    write(folder, "my recipe.yaml", "extends: [./base.yaml]\nname: mine")
    assert made("my recipe.yaml").name == "mine"


@pytest.mark.parametrize("name", ["a", "n" * 100, "v1.2-b_3", "größe", "-"])
def test_plain_names_are_kept(folder: Path, name: str) -> None:
    write(folder, "mine.yaml", f"extends: [./base.yaml]\nname: {json.dumps(name)}")
    recipe = made("mine.yaml")
    assert recipe_from_yaml(recipe.to_yaml(), fakes()).name == recipe.name == name


@pytest.mark.parametrize("text", ["just words", "- a\n- b"])
def test_what_is_no_recipe_at_all(folder: Path, text: str) -> None:
    write(folder, "mine.yaml", text)
    assert message("mine.yaml") == (
        "mine.yaml: is not a recipe: its top level is not a mapping\n"
        "  next: write sections, as `cm3 recipe show tiny` does"
    )


def test_unknown_recipe() -> None:
    assert message("cm3leon-350") == (
        "recipe 'cm3leon-350': no shipped recipe is called 'cm3leon-350'\n"
        "  next: did you mean 'cm3leon-350m'?; a file is given by its path (./mine.yaml)"
    )


CHECKS = {
    (
        "train.minutes=2",
    ): "train.steps, train.minutes: exactly one decides the length, both are given (10 and 2)",
    (
        "train.steps=null",
    ): "train.steps, train.minutes: exactly one decides the length, neither is given",
    ("train.batch_rows=0",): "train.batch_rows: is 0, must be more than 0",
    ("train.seed=-1",): "train.seed: is -1, must be 0 or more",
    ("train.seed=9223372036854775808",): (
        "train.seed: is 9223372036854775808, must be at most 9,223,372,036,854,775,807"
    ),
    ("train.steps=9223372036854775808",): (
        "train.steps: is 9223372036854775808, must be at most 9,223,372,036,854,775,807"
    ),
    (
        "train.steps=null",
        "train.minutes=.inf",
    ): "train.minutes: is inf, must be finite",
    (
        "train.steps=null",
        "train.minutes=.nan",
    ): "train.minutes: is nan, must be null or more than 0",
    ("train.steps=null", "train.minutes=10000001"): (
        "train.minutes: is 10000001.0, must be at most 10,000,000"
    ),
    (
        "train.batch_rows=999999999999",
    ): "train.batch_rows: is 999999999999, must be at most 1,048,576",
    ("train.accumulate=1048577",): "train.accumulate: is 1048577, must be at most 1,048,576",
    ("train.num_threads=4097",): "train.num_threads: is 4097, must be at most 4,096",
    ("train.learning_rate=.inf",): "train.learning_rate: is inf, must be finite",
    ("train.learning_rate=.nan",): "train.learning_rate: is nan, must be more than 0",
    ("train.muon_learning_rate=.inf",): "train.muon_learning_rate: is inf, must be finite",
    ("train.eps=.inf",): "train.eps: is inf, must be finite",
    ("train.weight_decay=.inf",): "train.weight_decay: is inf, must be finite",
    ("train.z_loss=.inf",): "train.z_loss: is inf, must be finite",
    (
        "train.betas=[0.9]",
    ): "train.betas: is [0.9], must be two numbers from 0 to 1, 1 not included",
    (
        "text_tokenizer=null",
    ): "vocabulary.num_text: is null, and there is no text tokenizer to take it from",
    (
        "image_tokenizer=square",
        "retriever=near",
        "retriever.num_retrieved=3",
        "decoder.context_length=72",
    ): "decoder.context_length: is 72, too short for 4 pictures of 4 x 4 codes (73 tokens without text)",
}


def test_a_component_says_which_other_sections_it_needs() -> None:
    registry = load_registry()
    for overrides, name in (
        (["embedder=null", "retriever=dense"], "quickstart"),
        (["retriever=dense", "decoder.context_length=768"], "tiny"),
    ):
        with pytest.raises(RecipeError) as caught:
            compose(name, overrides, registry=registry).check()
        assert str(caught.value) == (
            "retriever: 'dense' needs the section 'embedder', and the recipe has none\n"
            "  next: add embedder=NAME (or 'embedder: {name: ...}' in the recipe), or change "
            "retriever"
        )
    compose(
        "quickstart", ["embedder=null", "retriever=none", "reranker=null"], registry=registry
    ).check()


@pytest.mark.parametrize("overrides", CHECKS)
def test_values_that_are_not_possible_together(folder: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        made("base.yaml", *overrides).check()
    assert str(caught.value).splitlines()[0] == CHECKS[overrides]


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=0",
        "train.seed=9223372036854775807",
        "train.batch_rows=1048576",
        "train.num_threads=4096",
        "train.clip_norm=.inf",
        "train.checkpoint_every_minutes=.inf",
    ],
)
def test_the_largest_values_are_possible(folder: Path, override: str) -> None:
    made("base.yaml", override).check()


@pytest.mark.parametrize(
    "key", [key.name for key in fields(schema.TrainSection) if str(key.type).startswith("int")]
)
def test_every_count_of_training_has_a_largest_value(folder: Path, key: str) -> None:
    with pytest.raises(RecipeError, match=f"train.{key}: is .*, must be at most "):
        made("base.yaml", f"train.{key}={10**30}").check()


def test_what_fits_the_context_is_said(folder: Path) -> None:
    for length, next_step in (
        (72, "set retriever.num_retrieved=2, or set decoder.context_length to 73 or more"),
        (18, "set decoder.context_length to 73 or more"),
    ):
        with pytest.raises(RecipeError) as caught:
            made(
                "base.yaml",
                "image_tokenizer=square",
                "retriever=near",
                "retriever.num_retrieved=3",
                f"decoder.context_length={length}",
            ).check()
        assert str(caught.value).splitlines()[1] == f"  next: {next_step}"


def test_a_component_is_asked_to_check_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(PlainDecoderConfig, "check", lambda self: asked.append("decoder"))
    made().check()
    assert asked == ["decoder"]


def test_no_key_of_a_fixed_section_does_nothing() -> None:
    """Each is read by its name somewhere in the core, beyond its declaration and checks."""
    core = Path(schema.__file__).parents[1]
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in core.rglob("*.py")
        if path != Path(schema.__file__)
    )
    unread = [
        f"{name}.{key.name}"
        for name, section in schema.FIXED_SECTIONS.items()
        for key in fields(section)
        if not re.search(rf"\.{key.name}\b", source)
    ]
    assert unread == []


SHIPPED = sorted(recipes_directory().glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_composes_and_is_possible(path: Path) -> None:
    registry = load_registry()
    recipe = compose(path.stem, registry=registry)
    recipe.check()
    assert recipe_from_yaml(recipe.to_yaml(), registry) == recipe
    assert set(recipe.origins.values()) >= {path.name}


@pytest.mark.parametrize(
    "path", [*SHIPPED, *(recipes_directory() / "base").glob("*.yaml")], ids=lambda path: path.stem
)
def test_every_shipped_recipe_opens_with_what_a_reader_needs(path: Path) -> None:
    lines = header(path)
    assert lines[0].startswith(f"{path.stem}: "), "line 1: `# NAME: what it is`"
    assert 10 <= len(description(path)) <= 120
    for label in ("Hardware:", "Command: cm3 ", "Overrides:"):
        assert any(line.startswith(label) for line in lines), (
            f"the header has no line `# {label} ...`"
        )


def test_the_papers_sizes() -> None:
    """Spec section 5: layers, width, heads, learning rate; 8 * 2 ** 20 tokens a step for the token
    budget of table 3."""
    registry = load_registry()
    table = {
        "350m": (24, 1024, 16, 4096, 6e-4, 1.4e12),
        "760m": (24, 1536, 16, 6144, 5e-4, 1.9e12),
        "7b": (32, 4096, 32, 16384, 1.2e-4, 2.4e12),
    }
    for size, (layers, width, heads, feed_forward, rate, tokens) in table.items():
        recipe = compose(f"cm3leon-{size}", registry=registry)
        decoder, train = recipe.flat(), recipe.train
        assert [
            decoder[f"decoder.{key}"]
            for key in ("num_layers", "d_model", "num_heads", "d_ff", "context_length")
        ] == [layers, width, heads, feed_forward, 4096]
        batch = train.batch_rows * train.accumulate * 4096
        assert (batch, train.learning_rate, train.warmup_steps, train.clip_norm) == (
            8 * 2**20,
            rate,
            1500,
            1.0,
        )
        assert (train.schedule, train.final_learning_rate_fraction, train.betas) == (
            "polynomial",
            0.1,
            [0.9, 0.98],
        )
        assert train.steps is not None
        assert abs(train.steps * batch - tokens) <= batch
        assert (
            recipe.vocabulary.num_text,
            recipe.vocabulary.num_reserved,
            recipe.vocabulary.num_sentinels,
        ) == (56320, 1024, 512)
        assert recipe.image_tokenizer is not None
        assert (recipe.image_tokenizer.codebook_size, recipe.image_tokenizer.grid) == (
            8192,
            (32, 32),
        )
        assert recipe.retriever is not None
        assert recipe.retriever.num_retrieved == 2
        with pytest.raises(RecipeError, match="too short for 4 pictures of 32 x 32 codes"):
            compose(f"cm3leon-{size}", ["retriever.num_retrieved=3"], registry=registry).check()


def test_the_papers_retrieval() -> None:
    """Spec section 4."""
    values = compose("cm3leon-350m", registry=load_registry()).flat()
    paper = {
        "name": "dense",
        "query": "union",
        "num_ranks": 4,
        "max_similarity": 0.9,
        "max_redundancy": 0.9,
        "prefer_both": True,
        "query_dropout": 0.2,
    }
    assert {key: values[f"retriever.{key}"] for key in paper} == paper


@pytest.mark.parametrize(("size", "millions"), [("350m", 374), ("760m", 787), ("7b", 6_730)])
def test_the_papers_parameter_counts(size: str, millions: int) -> None:
    """Spec section 5, row "params tied, 66k vocab"; built on the meta device, so nothing is
    allocated."""
    import torch

    recipe = compose(f"cm3leon-{size}", registry=load_registry())
    assert recipe.decoder is not None
    assert recipe.attention is not None
    assert recipe.image_tokenizer is not None
    assert recipe.vocabulary.num_text is not None
    vocabulary = CM3LeonVocabulary(
        recipe.vocabulary.num_text,
        recipe.image_tokenizer.codebook_size,
        recipe.vocabulary.num_sentinels,
        recipe.vocabulary.num_reserved,
        recipe.vocabulary.multiple_of,
    )
    with torch.device("meta"):
        decoder = recipe.decoder.build(
            vocabulary, recipe.attention.build(), recipe.image_tokenizer.grid
        )
    assert isinstance(decoder, torch.nn.Module)
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.002)
    assert count == recipe.decoder.num_parameters(vocabulary, recipe.image_tokenizer.grid)


def test_listing_needs_neither_plugins_nor_omegaconf() -> None:
    script = (
        "import sys\nfrom cm3core.recipe import list_recipes\nassert len(list_recipes()) > 3\n"
        "print(sorted({'torch', 'numpy', 'omegaconf', 'pluggy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_descriptions_are_one_line() -> None:
    for recipe in list_recipes():
        assert recipe.description
        assert "\n" not in recipe.description
    assert "cm3leon-base" not in [recipe.name for recipe in list_recipes()]


def test_random_layers_never_change_each_other(folder: Path) -> None:
    """Composing is a function of the files: the same recipe twice, and another one between, gives
    the same."""
    first = made().to_yaml()
    made("base.yaml", *random.Random(0).sample(OVERRIDES[2:], 5))
    assert made().to_yaml() == first


def test_the_modern_decoder_costs_what_the_papers_does() -> None:
    """Per token, by the matrices of its layers; everything but the decoder and the z loss is equal."""
    registry = load_registry()
    paper, modern = (compose(f"cm3leon-{name}", registry=registry) for name in ("350m", "modern"))
    vocabulary, grid = CM3LeonVocabulary(num_text=56_320, num_image=8_192), (32, 32)
    assert paper.decoder is not None
    assert modern.decoder is not None
    counts = [
        recipe.decoder.num_parameters(vocabulary, grid) - 1024 * vocabulary.size
        for recipe in (paper, modern)
    ]
    assert counts[1] / counts[0] == pytest.approx(1, abs=0.03)
    differing = {
        key
        for key, value in modern.flat().items()
        if paper.flat().get(key) != value and not key.startswith("decoder.")
    }
    assert differing == {"train.z_loss"}
