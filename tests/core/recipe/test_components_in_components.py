"""Recipes whose components are made of others: composed, checked, shown, read again, built."""

from __future__ import annotations

from pathlib import Path

import pytest

import rrf_plugin
from cm3apps.catalog import keys_of
from cm3apps.cli import main as cli
from cm3apps.plugin_check.overrides import config_of
from cm3core.document import Text
from cm3core.errors import CM3Error, PluginError, RecipeError
from cm3core.interfaces import RetrieverConfig
from cm3core.plugins.discovery import load_registry, registry_of_one
from cm3core.plugins.registry import PluginInfo, Registry
from cm3core.recipe import Recipe, compose, diff, recipe_from_yaml
from cm3kits.retriever import RetrieverContract
from cm3kits.samples import ListSource
from cm3plugins.retrievers.bm25 import BM25RetrieverConfig
from messages import tells
from profiles import examples
from rrf_plugin import PlainConfig, RRFConfig

RRF = [
    "retriever=rrf",
    "retriever.parts.words=bm25",
    "retriever.parts.meaning={name: dense, num_ranks: 4}",
    "embedder=light_encoder",
    "decoder.context_length=600",
]
OTHER = ["retriever.parts.words.k7=1"]
PLAIN = ["sampler=plain", "sampler.inner={name: cfg, guidance_scale: 3}"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry([Path(rrf_plugin.__file__)], environ={})


def composed(registry: Registry, *overrides: str) -> Recipe:
    return compose("tiny", overrides, registry=registry)


def refused(registry: Registry, *overrides: str) -> str:
    with pytest.raises(CM3Error) as error:
        composed(registry, *overrides).check()
    return str(error.value)


def test_components_have_their_own_keys_and_defaults(registry: Registry) -> None:
    recipe = composed(registry, *RRF, "retriever.parts.words.k1=1.5")
    recipe.check()
    values = recipe.to_dict()["retriever"]
    assert list(values["parts"]) == ["meaning", "words"]
    assert values["parts"]["words"]["name"] == "bm25"
    assert values["parts"]["words"]["k1"] == 1.5
    assert values["parts"]["words"]["num_ranks"] == 8
    assert values["parts"]["meaning"]["num_ranks"] == 4
    assert isinstance(recipe.retriever.parts["words"], BM25RetrieverConfig)
    assert recipe.flat()["retriever.parts.words.name"] == "bm25"


def test_what_is_stored_is_read_again(registry: Registry) -> None:
    for overrides in (RRF, [*PLAIN, "sampler.more=[top_p, {name: plain, inner: cfg}]"]):
        recipe = composed(registry, *overrides)
        again = recipe_from_yaml(recipe.to_yaml(), registry)
        assert again.to_yaml() == recipe.to_yaml()
        assert again.hash == recipe.hash
        assert diff(again, recipe) == []
    assert composed(registry, *RRF).hash != composed(registry, *RRF, "retriever.k=9").hash
    other = composed(registry, *RRF, "retriever.parts.words.k1=1.1")
    assert [key for key, *_ in diff(composed(registry, *RRF), other)] == [
        "retriever.parts.words.k1"
    ]


def test_layers_change_keys_replace_components_and_remove_them(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "base.yaml").write_text(
        "extends: tiny\n"
        "retriever: {name: rrf, parts: {a: {name: bm25, k1: 2}, b: random, c: bm25}}\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: ./base.yaml\n"
        "retriever: {parts: {a: {b: 0.5}, b: {name: bm25, k1: 3}, c: null, d: random}}\n"
    )
    recipe = compose(str(path), registry=registry)
    parts = recipe.to_dict()["retriever"]["parts"]
    assert {key: part["name"] for key, part in parts.items()} == {
        "a": "bm25",
        "b": "bm25",
        "d": "random",
    }
    assert (parts["a"]["k1"], parts["a"]["b"], parts["b"]["k1"]) == (2.0, 0.5, 3.0)
    assert recipe.origins["retriever.parts.a.k1"].endswith("base.yaml")
    assert recipe.origins["retriever.parts.a.b"].endswith("mine.yaml")
    assert recipe.origins["retriever.parts.a.num_ranks"] == "default"
    assert not [key for key in recipe.origins if key.startswith("retriever.parts.c")]
    changed = compose(str(path), ["retriever.parts.a.name=random"], registry=registry)
    assert "k1" not in changed.to_dict()["retriever"]["parts"]["a"]


def test_one_a_list_and_none(registry: Registry) -> None:
    values = composed(registry, *PLAIN).to_dict()["sampler"]
    assert (values["inner"]["name"], values["inner"]["guidance_scale"]) == ("cfg", 3.0)
    assert (values["more"], values["none"]) == ([], None)
    values = composed(
        registry, *PLAIN, "sampler.none=top_p", "sampler.more=[cfg, {name: top_p, top_k: 3}]"
    ).to_dict()["sampler"]
    assert values["none"]["name"] == "top_p"
    assert [(item["name"], item["top_k"]) for item in values["more"]] == [("cfg", 0), ("top_p", 3)]
    deeper = composed(registry, "sampler=plain", "sampler.inner={name: plain, inner: top_p}")
    assert type(deeper.sampler.inner) is type(deeper.sampler)
    assert deeper.to_dict()["sampler"]["inner"]["inner"]["name"] == "top_p"


def test_values_may_refer_to_others(registry: Registry) -> None:
    recipe = composed(registry, *RRF, "retriever.parts.words.num_ranks=${retriever.k}")
    assert recipe.retriever.parts["words"].num_ranks == 60


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["retriever.parts.words.k2=3"],
            "command line: retriever.parts.words.k2: the retriever 'bm25'",
        ),
        (
            ["retriever.parts.words.name=bm52"],
            "command line: retriever.parts.words.name: no retriever",
        ),
        (
            ["retriever.parts.words.k1=many"],
            "command line: retriever.parts.words.k1: is 'many'",
        ),
        (
            ["retriever.parts.third.k1=2"],
            "command line: retriever.parts.third.name: is missing",
        ),
        (
            ["retriever.parts.third=3"],
            "command line: retriever.parts.third: is 3",
        ),
        (
            ["retriever.parts.third.name=3"],
            "command line: retriever.parts.third.name: is 3",
        ),
        (
            ["retriever.parts.words.num_ranks=0"],
            "retriever.parts.words.num_ranks: is 0, must ... least 1",
        ),
        (["embedder=null"], "retriever: 'rrf' needs the ... 'embedder'"),
        (
            ["retriever.parts.words.num_ranks=${train.schedule}"],
            "command line: retriever.parts.words.num_ranks: is '${train.schedule}'",
        ),
    ],
)
def test_errors_are_those_of_a_section_with_the_whole_place(
    registry: Registry, overrides: list[str], message: str
) -> None:
    given = {override.partition("=")[0].removesuffix(".name") for override in overrides}
    kept = [one for one in RRF if one.partition("=")[0] not in given]
    assert tells(refused(registry, *kept, *overrides), message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["retriever=rrf", "retriever.parts=bm25"],
            "is 'bm25', must be a mapping of names to values",
        ),
        (["retriever=rrf"], "retriever.parts: is empty\n  next: name a retriever or more"),
        (["sampler=plain"], "lacks a value for sampler.inner\n  next: give"),
        ([*PLAIN, "sampler.more=cfg"], "sampler.more: is 'cfg', must be a list of values"),
        (
            ["sampler=plain", "sampler.inner=null"],
            "sampler.inner: is None, must be the name of a component (sampler) or a mapping",
        ),
    ],
)
def test_fields_without_a_component_are_refused(
    registry: Registry, overrides: list[str], message: str
) -> None:
    assert message in refused(registry, *overrides)


def test_a_part_that_nobody_provides_names_the_place(registry: Registry) -> None:
    with pytest.raises(PluginError, match=r"retriever\.parts\.x\.name"):
        composed(registry, "retriever=rrf", "retriever.parts.x=nothing")


def test_keys_are_shown_as_what_they_hold() -> None:
    keys = {key.name: key for key in keys_of(RRFConfig)}
    assert keys["parts"].type == "dict[str, retriever]"
    assert not [name for name in keys if name.startswith("parts.")]
    assert {key.name: key.type for key in keys_of(PlainConfig)} == {
        "inner": "sampler",
        "more": "list[sampler]",
        "none": "sampler | None",
    }


def test_the_command_line_checks_and_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = ["--plugin", rrf_plugin.__file__]
    assert cli.main([*plugin, "recipe", "check", "tiny", *RRF]) == 0
    capsys.readouterr()
    assert cli.main([*plugin, "recipe", "show", "tiny", *RRF, "--origin"]) == 0
    assert "retriever.parts.words.name = bm25 " in capsys.readouterr().out
    assert cli.main([*plugin, "recipe", "check", "tiny", *RRF, *OTHER]) == 2
    assert "retriever 'bm25' at retriever.parts.words has no key 'k7'" in capsys.readouterr().err


def documents(*texts: str) -> ListSource:
    return ListSource([(Text(text),) for text in texts])


def test_fusion_by_hand(registry: Registry) -> None:
    """Both parts are bm25, so each rank counts twice: 2 / 61, 2 / 62."""
    recipe = composed(registry, "retriever=rrf", "retriever.parts.a=bm25", "retriever.parts.b=bm25")
    memory = documents("a red apple", "a red pear", "the blue sky")
    retriever = recipe.retriever.build(memory, None)
    [found] = retriever.retrieve([(Text("red apple"),)], 2)
    assert [result.index for result in found] == [0, 1]
    assert [result.score for result in found] == pytest.approx([2 / 61, 2 / 62])


def with_defaults() -> RetrieverConfig:
    return RRFConfig(parts={"words": BM25RetrieverConfig(), "again": BM25RetrieverConfig(k1=0.1)})


class TestRRF(RetrieverContract):
    config = with_defaults()
    max_examples = examples(5)


def test_a_part_that_is_a_default_gets_its_name(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "defaults.py"
    path.write_text(
        "from dataclasses import dataclass, field\n"
        "from cm3core.hookspecs import hookimpl\n"
        "from cm3core.interfaces import RetrieverConfig\n"
        "from cm3plugins.retrievers.bm25 import BM25RetrieverConfig\n"
        "CM3_API = 1\n"
        "@dataclass(kw_only=True)\n"
        "class OverConfig(RetrieverConfig):\n"
        '    """Over."""\n'
        "    inner: RetrieverConfig = field(default_factory=lambda: BM25RetrieverConfig(k1=3))\n"
        "    def build(self, memory, embedder): return self.inner.build(memory, embedder)\n"
        "@hookimpl\n"
        "def cm3_retrievers(): return {'over': OverConfig}\n"
    )
    recipe = compose("tiny", ["retriever=over"], registry=load_registry([path], environ={}))
    inner = recipe.to_dict()["retriever"]["inner"]
    assert (inner["name"], inner["k1"]) == ("bm25", 3.0)


def test_a_changed_key_keeps_what_is_in_the_component(registry: Registry) -> None:
    from cm3core.config.overrides import with_options

    recipe = composed(registry, *PLAIN)
    changed = with_options(recipe.sampler, {"none": recipe.sampler.inner})
    assert changed.inner is recipe.sampler.inner
    with pytest.raises(CM3Error, match="is 'cfg', not sampler"):
        with_options(recipe.sampler, {"inner": "cfg"})
    with pytest.raises(RecipeError, match=r"sampler\.inner\.guidance_scale"):
        composed(registry, "sampler=plain", "sampler.inner={name: cfg, guidance_scale: -1}").check()


def test_the_check_of_a_plugin_finds_what_its_components_are_made_of() -> None:
    """Its own registry has only the plugin; the parts come from those installed."""
    own = registry_of_one(PluginInfo("rrf_plugin", "", ""), lambda: rrf_plugin)
    config = config_of("retriever", "rrf", ["rrf.parts.words=bm25", "rrf.k=3"], own)
    assert config == RRFConfig(parts={"words": BM25RetrieverConfig()}, k=3)
