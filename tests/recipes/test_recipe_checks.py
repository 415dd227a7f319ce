"""Values that are not possible, alone or together."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import cm3core
import cm3run
from cm3core.errors import RecipeError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3core.recipe import sections as schema
from messages import tells
from plain_recipes import (
    PlainDecoderConfig,
    made,
)

CHECKS = {
    (
        "train.minutes=2",
    ): "train.steps, train.minutes: exactly one decides the length, both are given (10 and 2)",
    (
        "train.steps=null",
    ): "train.steps, train.minutes: exactly one decides the length, neither is given",
    ("train.batch_rows=0",): "train.batch_rows: is 0, must be at least 1",
    ("train.seed=-1",): "train.seed: is -1, must be at least 0",
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
    ): "train.minutes: is nan, must be finite",
    ("train.steps=null", "train.minutes=10000001"): (
        "train.minutes: is 10000001.0, must be at most 10,000,000"
    ),
    (
        "train.batch_rows=999999999999",
    ): "train.batch_rows: is 999999999999, must be at most 1,048,576",
    ("train.accumulate=1048577",): "train.accumulate: is 1048577, must be at most 1,048,576",
    ("train.num_threads=4097",): "train.num_threads: is 4097, must be at most 4,096",
    ("train.learning_rate=.inf",): "train.learning_rate: is inf, must be finite",
    ("train.learning_rate=.nan",): "train.learning_rate: is nan, must be finite",
    ("train.muon_learning_rate=.inf",): "train.muon_learning_rate: is inf, must be finite",
    ("train.eps=.inf",): "train.eps: is inf, must be finite",
    ("train.weight_decay=.inf",): "train.weight_decay: is inf, must be finite",
    ("train.z_loss=.inf",): "train.z_loss: is inf, must be finite",
    (
        "train.betas=[0.9]",
    ): "train.betas: is [0.9], must be two numbers from 0 to 1, 1 not included",
    (
        "text_tokenizer=null",
    ): "vocabulary.num_text: is null, but there is no text tokenizer to take it from",
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
        assert tells(caught.value, "retriever: 'dense' needs the ... 'embedder' ... NAME")
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
    # 73 tokens without text, 64 of text for each of 4 documents, in whole 32s
    longer = "set decoder.context_length=352, which has room for the texts, too"
    for length, next_step in (
        (72, f"{longer}, or retriever.num_retrieved=2"),
        (18, longer),
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
    """Each is read by its name somewhere in the core or the engine, beyond its declaration and checks."""
    places = [Path(package.__file__).parent for package in (cm3core, cm3run)]
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for place in places
        for path in place.rglob("*.py")
        if path != Path(schema.__file__)
    )
    unread = [
        f"{name}.{key.name}"
        for name, section in schema.FIXED_SECTIONS.items()
        for key in fields(section)
        if not re.search(rf"\.{key.name}\b", source)
    ]
    assert unread == []
