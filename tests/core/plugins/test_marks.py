"""Components that take a role because their configs say so, whatever they are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from cm3apps.cli._dataset import reader_of
from cm3core.errors import PluginError
from cm3core.interfaces import DocumentSourceConfig, RetrieverConfig, SamplerConfig
from cm3core.interfaces.dataset import FOLDER
from cm3core.plugins import PluginInfo, Registry, load_registry
from cm3core.plugins.registry import default_name, marked
from cm3core.recipe import Recipe
from cm3run.model.drawing import sampler_for
from messages import tells


@dataclass(kw_only=True)
class Near(RetrieverConfig):
    is_default: ClassVar[bool] = True


@dataclass(kw_only=True)
class Nearer(Near):
    pass


@dataclass(kw_only=True)
class Rewrite(SamplerConfig):
    edits: ClassVar[bool] = True


@dataclass(kw_only=True)
class Rewriter(Rewrite):
    pass


@dataclass(kw_only=True)
class Tables(DocumentSourceConfig):
    reads: ClassVar[tuple[str, ...]] = (".csv", FOLDER)


def registry_of(**brought: dict[str, type]) -> Registry:
    registry = Registry()
    registry.add(PluginInfo("mine", "1", "here"), brought, {})
    return registry


def test_the_bundled_ones() -> None:
    registry = load_registry()
    defaults = {
        kind: default_name(registry, kind, place="here")
        for kind in ("retriever", "text_tokenizer", "upscaler")
    }
    assert defaults == {"retriever": "dense", "text_tokenizer": "bpe", "upscaler": "edsr"}
    assert marked(registry, "sampler", "edits") == {"edit_cfg": True}
    assert marked(registry, "sampler", "structures") == {"structure_cfg": True}
    silent = [
        name
        for name in registry.names("retriever")
        if not registry.config_class("retriever", name).retrieves
    ]
    assert silent == ["none"]


def test_a_plugins_take_the_role_and_what_derives_from_them_does_not() -> None:
    registry = registry_of(
        retriever={"near": Near, "a": Nearer}, sampler={"r": Rewrite, "b": Rewriter}
    )
    assert default_name(registry, "retriever", place="bank") == "near"
    bare = Recipe(name="bare")
    assert sampler_for("edits", bare, registry) == "r"
    assert sampler_for("structures", bare, registry) is None
    own = Recipe(name="own", sampler=Rewriter())
    assert sampler_for("edits", own, registry) is None
    assert sampler_for("structures", own, load_registry()) is None, "it guides by pictures, too"
    assert sampler_for("structures", bare, load_registry()) == "structure_cfg"
    assert sampler_for("edits", bare, registry_of()) is None


def test_a_name_of_several_plugins_is_written_in_full() -> None:
    registry = registry_of(retriever={"near": Near})
    registry.add(PluginInfo("other", "1", "there"), {"retriever": {"near": Nearer}}, {})
    assert marked(registry, "retriever", "is_default") == {"mine/near": True}


def test_no_default() -> None:
    with pytest.raises(PluginError) as error:
        default_name(registry_of(retriever={"a": Nearer}), "retriever", place="bank")
    assert tells(error.value, "bank: no retriever is named, and no")


def test_paths_are_read_by_what_says_that_it_reads_them(tmp_path: Path) -> None:
    registry = registry_of(dataset={"tables": Tables})
    assert reader_of("x.CSV", registry) == "tables"
    assert reader_of(str(tmp_path), registry) == "tables"
    assert reader_of("x.jsonl", registry) is None
