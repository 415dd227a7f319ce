"""Components of a list or a dict in a component changed for one call, as a recipe's layers would."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import rrf_plugin
from cm3core.config.overrides import with_options
from cm3core.errors import CM3Error, GenerationError
from cm3core.interfaces import RetrieverConfig
from cm3core.interfaces.component import chosen_name
from cm3core.plugins import load_registry
from cm3core.plugins.registry import finder
from cm3core.recipe import compose
from messages import tells

REGISTRY = load_registry([Path(rrf_plugin.__file__)], environ={})
FIND = finder(REGISTRY)


def recipe_of(*overrides: str) -> Any:
    return compose("tiny", ["retriever=rrf", *overrides], registry=REGISTRY).retriever


RRF = recipe_of(
    "retriever.parts.meaning=dense", "retriever.parts.words=bm25", "retriever.parts.words.k1=2"
)


@pytest.mark.parametrize(
    ("overrides", "options"),
    [
        (["retriever.parts.words=random"], {"parts.words": "random"}),
        (["retriever.parts.more=bm25"], {"parts.more": "bm25"}),
        (["retriever.parts.words.k1=3"], {"parts.words.k1": 3}),
        (["retriever.parts.words=null"], {"parts.words": None}),
        (
            ["retriever.parts.more.name=bm25", "retriever.parts.more.k1=3", "retriever.k=9"],
            {"parts.more": "bm25", "parts.more.k1": 3, "k": 9},
        ),
        (
            ["retriever.parts={more: {name: bm25, k1: 3}, words: random}"],
            {"parts": {"more": {"name": "bm25", "k1": 3}, "words": "random"}},
        ),
    ],
)
def test_a_call_changes_what_a_recipe_would(overrides: list[str], options: dict[str, Any]) -> None:
    """The recipe that had the parts, with the overrides in a layer above."""
    base = {"meaning": "dense", "words": "{name: bm25, k1: 2}"}
    text = f"retriever.parts={{{', '.join(f'{n}: {v}' for n, v in base.items())}}}"
    below = recipe_of(text)
    assert below == RRF
    wanted = compose_above(text, overrides)
    changed = with_options(RRF, options, find=FIND)
    assert changed == wanted
    names = [
        {key: chosen_name(part) for key, part in one.parts.items()} for one in (changed, wanted)
    ]
    assert names[0] == names[1]
    assert below == RRF, "stays as it is"


def compose_above(text: str, overrides: list[str]) -> Any:
    from cm3core.recipe.layers import Layer, override_layer
    from cm3core.recipe.merge import _compose

    given = override_layer(["retriever=rrf", text, "dataset=emoji"], REGISTRY.kinds).values
    values = {**given, "vocabulary": {"num_text": 256}, "train": {"steps": 1}}
    above = override_layer(overrides, REGISTRY.kinds)
    return _compose("x", [Layer("below", values), above], REGISTRY).retriever


@dataclass(kw_only=True)
class ListedConfig(RetrieverConfig):
    parts: list[RetrieverConfig] = field(default_factory=list)
    maybe: RetrieverConfig | None = None

    def build(self, memory, embedder):
        raise NotImplementedError


def test_lists_and_what_may_be_null() -> None:
    config = with_options(
        ListedConfig(), {"parts": ["bm25", {"name": "random"}], "maybe": "bm25"}, find=FIND
    )
    assert [chosen_name(part) for part in config.parts] == ["bm25", "random"]
    config = with_options(config, {"parts.0.k1": 3.0, "maybe.k1": 2.0}, find=FIND)
    assert (config.parts[0].k1, config.maybe.k1) == (3.0, 2.0)  # type: ignore[attr-defined,union-attr]  # bm25's
    assert with_options(config, {"maybe": None}, find=FIND).maybe is None
    with pytest.raises(GenerationError) as error:
        with_options(config, {"parts.2.k1": 3.0}, find=FIND)
    assert str(error.value) == "retriever.parts.2: is not there\n  next: known: 0, 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parts.words": "bm52"},
            "retriever.parts.words: no retriever is ... 'bm52' ... 'bm25'",
        ),
        (
            {"parts.words.k": 1},
            "retriever.parts.words.k: is not a key of this ... 'k1'",
        ),
        (
            {"parts.new.k1": 1},
            "retriever.parts.new: is not given, but its keys",
        ),
        (
            {"parts.words": 3},
            "retriever.parts.words: is 3, not",
        ),
        (
            {"parts": "bm25"},
            "retriever.parts: is 'bm25', must be a mapping of names ... the name of a component (retriever)",
        ),
        (
            {"parts.words": None, "parts.meaning": None},
            "retriever.parts: is empty\n  next: name a retriever or more",
        ),
        (
            {"partz.words": "bm25"},
            "retriever.partz.words: is not a key of this",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CM3Error) as error:
        with_options(RRF, options, find=FIND)
    assert tells(error.value, message)
