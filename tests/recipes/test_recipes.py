"""Composing recipes: layers, overrides, interpolation, names and hashes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import RecipeError
from cm3core.recipe import Recipe, diff, recipe_from_yaml
from plain_recipes import (
    BASE,
    Block,
    ByteConfig,
    PairsConfig,
    PlainDecoderConfig,
    fakes,
    made,
    write,
)


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


FOREIGN = "recipes can only refer to other keys of the recipe, not to the environment or resolvers"


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
        assert str(caught.value).startswith(f"{place}: contains ")
        assert FOREIGN in str(caught.value) or "no valid interpolation" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_an_escaped_interpolation_is_text(folder: Path) -> None:
    recipe = made("base.yaml", r"text_tokenizer.path=\${oc.env:HOME}")
    assert isinstance(recipe.text_tokenizer, PairsConfig)
    assert recipe.text_tokenizer.path == "${oc.env:HOME}"
    assert recipe_from_yaml(recipe.to_yaml(), fakes(), label="again") == recipe


def test_random_layers_never_change_each_other(folder: Path) -> None:
    """Composing is a function of the files: the same recipe twice, and another one between, gives
    the same."""
    first = made().to_yaml()
    made("base.yaml", *random.Random(0).sample(OVERRIDES[2:], 5))
    assert made().to_yaml() == first
