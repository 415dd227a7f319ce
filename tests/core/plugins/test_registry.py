"""Lookup by kind and name: names of several plugins, unknown names, and functions."""

from __future__ import annotations

import pytest

from cm3core.errors import PluginError
from cm3core.plugins.discovery import STRICT_VARIABLE, load_registry
from cm3core.plugins.registry import DISABLE_VARIABLE
from messages import tells
from throwaway_plugins import GOOD, Install, info_of


def test_a_name_from_two_plugins_is_legal_until_it_is_used(install: Install) -> None:
    install("mine", GOOD)
    install("yours", GOOD)
    registry = load_registry(environ={STRICT_VARIABLE: "1"})
    assert registry.names("text_tokenizer").count("characters") == 1
    with pytest.raises(PluginError) as caught:
        registry.config_class(
            "text_tokenizer", "characters", place="mine.yaml: text_tokenizer.name"
        )
    assert tells(caught.value, "mine.yaml: text_tokenizer.name: the text_tokenizer")
    ours = registry.config_class("text_tokenizer", "mine/characters")
    assert (
        ours.__module__,
        registry.config_class("text_tokenizer", "yours/characters").__module__,
    ) == ("throwaway_mine", "throwaway_yours")


def test_unknown_names() -> None:
    registry = load_registry(environ={STRICT_VARIABLE: "1"})
    with pytest.raises(PluginError) as caught:
        registry.config_class("decoder", "cm3lion")
    assert tells(caught.value, "decoder 'cm3lion': no decoder is ... 'cm3lion' ... 'cm3leon'")
    with pytest.raises(PluginError, match="no plugin 'bundle' is loaded"):
        registry.config_class("decoder", "bundle/cm3leon")
    with pytest.raises(PluginError, match="the plugin 'bundled' provides no decoder 'sdpa'"):
        registry.config_class("decoder", "bundled/sdpa")
    with pytest.raises(PluginError, match="recipes name components, not Python classes"):
        registry.config_class("decoder", "torch.nn.Linear")


def test_benchmarks_are_named_when_described_and_imported_when_asked_for(install: Install) -> None:
    hook = "\n@hookimpl\ndef cm3_benchmarks():\n    return {'%s': '%s'}\n\ndef add(registry):\n    return 3\n"
    install("mine", GOOD + hook % ("mine", "throwaway_mine:add"))
    install("lost", GOOD.replace("characters", "letters") + hook % ("x", "nowhere:add"))
    registry = load_registry(environ={DISABLE_VARIABLE: "lost"})
    assert info_of(registry, "mine").benchmarks == ["mine"]
    assert [
        function(None)
        for function in registry.benchmarks()
        if function.__module__ == "throwaway_mine"
    ] == [3]
    with pytest.raises(PluginError) as caught:
        load_registry(environ={}).benchmarks()
    assert tells(caught.value, "benchmark 'x': the plugin 'lost' ... 'nowhere:add'")
