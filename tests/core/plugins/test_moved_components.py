"""Components that moved from one of our distributions to another: named by an earlier recipe, or missing."""

from __future__ import annotations

import pytest

from cm3core.errors import PluginError
from cm3core.plugins import load_registry
from cm3core.plugins.registry import ANYONE, Provider, Writer, find

THEN = Provider("chameleon", "bundled", "cm3leon", "0.1.0")


def test_a_stored_model_finds_what_has_moved() -> None:
    registry = load_registry()
    found = find(registry, "layout", "chameleon", place="recipe", writer=Writer({"layout": THEN}))
    assert found is registry.config_class("layout", "published/chameleon")
    # a recipe that named the plugin
    assert registry.config_class("layout", "bundled/chameleon") is found


def test_a_stranger_takes_no_place_of_ours() -> None:
    theirs = Provider("chameleon", "others", "cm3-others", "1.0")
    assert theirs.among({"published": "cm3published"}) is None
    assert THEN.among({"others": "cm3-others"}) is None
    assert THEN.among({"others": "cm3-others", "published": "cm3published"}) == "published"


def test_the_distribution_that_has_it_is_named() -> None:
    registry = load_registry(environ={"CM3_DISABLE_PLUGINS": "published"})
    for writer in (ANYONE, Writer({"layout": THEN})):
        with pytest.raises(PluginError) as caught:
            find(registry, "layout", "chameleon", place="recipe", writer=writer)
        assert str(caught.value) == (
            "recipe: the distribution cm3published provides the layout 'chameleon', but is not installed or not in use\n"
            "  next: pip install ./plugins/cm3-published, in the checkout of cm3leon"
        )
