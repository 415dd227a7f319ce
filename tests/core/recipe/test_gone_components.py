"""Components that are gone: what a stored recipe that names one says."""

from __future__ import annotations

import pytest

from cm3core.errors import PluginError
from cm3core.plugins import load_registry
from cm3core.plugins.registry import Provider, Writer
from cm3core.recipe import compose
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import MissingComponent
from messages import tells


def test_a_run_made_with_a_component_that_is_gone_says_what_to_do() -> None:
    """The section is refused when it is used, and whoever removes it has the rest."""
    registry = load_registry()
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
