"""Keys of earlier versions that a plugin's component has taken over: recipes with them still mean the same."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cm3core.errors import PluginError, RecipeError
from cm3core.plugins import Registry, load_registry
from cm3core.plugins.registry import Provider, Writer
from cm3core.recipe import Recipe, compose, recipe_from_yaml
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import MissingComponent
from cm3plugins.icons.config import IconFinisherConfig
from messages import tells

FIXTURES = Path(__file__).parents[2] / "fixtures"
#: As earlier versions wrote them.
OLD = {
    "query_leaves_out": "[a, the]",
    "query_replaces": "{puppy: dog}",
    "query_singular": "true",
    "search_for_words": "12",
    "thing_ends_at": "[with]",
    "unless_asked_for": "[colour]",
    "same_thing_margin": "0.2",
}
UNUSED = ("[]", "{}", "false", "0", "[]", "[]", "0.0")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([FIXTURES / "rrf_plugin.py"], environ={})


def stored(values: dict[str, str], colour_words: str, registry: Registry) -> Recipe:
    """The recipe `tiny` as an earlier version stored it, with these values of its own keys."""
    text = compose("tiny", ["retriever=bm25"], registry=registry).to_yaml()
    lines = "".join(f"  {key}: {value}\n" for key, value in values.items())
    text = text.replace("retriever:\n  name: bm25\n", f"retriever:\n  name: bm25\n{lines}")
    text = text.replace("\ngenerate:\n", f"\ngenerate:\n  colour_words: {colour_words}\n")
    assert lines in text
    return recipe_from_yaml(text, registry)


def test_a_stored_recipe_with_old_keys_means_the_same(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    old = stored(dict(zip(OLD, UNUSED, strict=True)), "[red]", registry)
    assert "generate.colour_words is finisher.colour_words" in caplog.text
    given = ["retriever=bm25", "finisher=icon", "finisher.colour_words=[red]"]
    now = compose("tiny", given, registry=registry)
    assert old == now
    assert old.hash == now.hash
    assert recipe_from_yaml(old.to_yaml(), registry) == old


@pytest.mark.parametrize("key", OLD)
def test_keys_of_a_component_that_is_gone_say_what_to_do(registry: Registry, key: str) -> None:
    with pytest.raises(PluginError) as error:
        stored({key: OLD[key]}, "[]", registry)
    assert tells(
        error.value,
        "recipe.yaml: prompt_rewriter.name: there is no prompt_rewriter 'word_lists' any more ... remove the section",
    )


def test_a_run_made_with_a_component_that_is_gone_says_what_to_do(registry: Registry) -> None:
    """The section is refused when it is used, and whoever removes it has the rest."""
    text = compose("tiny", registry=registry).to_yaml()
    then = Provider("word_lists", "bundled", "cm3leon", "0.1.0")
    writer = Writer({"prompt_rewriter": then}, stored=True)
    old = stored_recipe(
        f"{text}prompt_rewriter:\n  name: word_lists\n  singular: true\n",
        registry,
        label="run",
        writer=writer,
        lenient=True,
    )
    rewriter = old.section("prompt_rewriter")
    assert isinstance(rewriter, MissingComponent)
    with pytest.raises(PluginError) as error:
        rewriter.refuse()
    assert tells(error.value, "... there is no prompt_rewriter 'word_lists' any more ... hybrid")
    assert stored_recipe(text, registry, label="run", writer=writer) == compose(
        "tiny", registry=registry
    )


def test_old_keys_that_change_nothing_are_left_out(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    old = stored(dict(zip(OLD, UNUSED, strict=True)), "[]", registry)
    assert old == compose("tiny", ["retriever=bm25"], registry=registry)
    assert old.brought == {}
    assert caplog.text == ""


def test_an_old_key_changes_the_section_of_an_earlier_layer(registry: Registry) -> None:
    """Also to a value that changes nothing by itself."""
    for overrides, words in (([], None), (["generate.colour_words=[]"], [])):
        section = compose("icons-tuned", overrides, registry=registry).section("finisher")
        assert isinstance(section, IconFinisherConfig)
        assert section.colour_words == words


def test_an_old_key_beside_the_new_one_is_refused(registry: Registry) -> None:
    given = ["generate.colour_words=[red]", "finisher.colour_words=[red]"]
    with pytest.raises(RecipeError) as error:
        compose("icons-tuned", given, registry=registry)
    assert tells(
        error.value,
        "command line: generate.colour_words: is the old name of 'finisher.colour_words', which is given too",
    )


def test_components_inside_others_never_read_them(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    parts = ["retriever=rrf", "retriever.parts.words=bm25"]
    plain = compose("tiny", parts, registry=registry)
    caplog.set_level(logging.WARNING)
    for value, told in (("[]", ""), ("[a]", "retriever.parts.words.query_leaves_out: is not used")):
        given = [*parts, f"retriever.parts.words.query_leaves_out={value}"]
        assert compose("tiny", given, registry=registry) == plain
        assert told in caplog.text if told else caplog.text == ""


def test_other_unknown_keys_are_still_refused(registry: Registry) -> None:
    with pytest.raises(RecipeError, match="has no key 'query_repeats'"):
        compose("icons-tuned", ["retriever.query_repeats=1"], registry=registry)
