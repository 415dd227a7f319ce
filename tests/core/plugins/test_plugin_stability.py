"""What is promised to plugins that are not changed: an older API, hooks and arguments that go, keys
that were renamed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cm3apps.cli.main import main
from cm3core import hookspecs
from cm3core.errors import PluginError, RecipeError
from cm3core.plugins import Registry, describe, load_registry
from cm3core.recipe import compose, recipe_from_yaml
from messages import tells

PLUGIN = """\
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import TextTokenizerConfig

CM3_API = 1

@dataclass(kw_only=True)
class LettersConfig(TextTokenizerConfig):
    renamed = {"size": "vocab_size"}
    vocab_size: int = 3
    def build(self, corpus=None): raise AssertionError("described, never built")

@hookimpl
def cm3_text_tokenizers():
    return {"letters": LettersConfig}
"""
Load = Callable[[str], Registry]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """The registry with the plugin `old`, a file of this source."""

    def loaded(source: str) -> Registry:
        (tmp_path / "old.py").write_text(source, encoding="utf-8")
        return load_registry([tmp_path / "old.py"], environ={})

    return loaded


def test_a_plugin_of_api_0_is_refused(load: Load, tmp_path: Path) -> None:
    """There never was an API 0: who states it copied a number."""
    with pytest.raises(PluginError) as caught:
        load(PLUGIN.replace("CM3_API = 1", "CM3_API = 0"))
    assert tells(
        caught.value, f"plugin 'old' ({tmp_path / 'old.py'}): is written for ... API 0 ... has 1"
    )


def test_the_api_before_is_served_and_told(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As it will be with API 2: the bundled plugin and this one state 1, and work."""
    monkeypatch.setattr(describe, "CM3_API", 2)
    registry = load(PLUGIN)
    (info,) = [info for info in registry.plugins if info.name == "old"]
    line = "is written for plugin API 1; this cm3leon has 2 and still supports it"
    assert (info.status, info.deprecated) == ("loaded", [line])
    assert registry.config_class("text_tokenizer", "letters").__name__ == "LettersConfig"
    assert f"plugin 'old' ({tmp_path / 'old.py'}): {line}; update it" in caplog.messages


@pytest.mark.parametrize(("stated", "step"), [(1, "update the plugin"), (4, "update cm3leon")])
def test_what_is_older_or_newer_than_the_window_is_refused(
    stated: int, step: str, load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(describe, "CM3_API", 3)
    monkeypatch.setattr(describe, "OLDEST_CM3_API", 2)
    with pytest.raises(PluginError) as caught:
        load(PLUGIN.replace("CM3_API = 1", f"CM3_API = {stated}"))
    assert tells(
        caught.value,
        f"plugin 'old' ({tmp_path / 'old.py'}): is written for ... API {stated} ... supports 2",
    )


def with_hook(
    monkeypatch: pytest.MonkeyPatch, hook: object, arguments: dict[str, dict[str, object]]
) -> None:
    """Let the loader read hook specifications in which one hook is another."""
    specs = ModuleType("specs_of_this_test")
    vars(specs).update({**vars(hookspecs), "cm3_text_tokenizers": hook, "ARGUMENTS": arguments})
    monkeypatch.setattr(describe, "hookspecs", specs)


def test_a_deprecated_argument_is_given_and_told(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = DeprecationWarning(
        "the argument `prefix` of cm3_text_tokenizers goes with plugin API 2: leave it out"
    )

    @hookspecs.hookspec(warn_on_impl_args={"prefix": gone})
    def cm3_text_tokenizers(prefix: str) -> None: ...

    with_hook(monkeypatch, cm3_text_tokenizers, {"cm3_text_tokenizers": {"prefix": "old"}})
    uses_it = PLUGIN.replace("cm3_text_tokenizers():", "cm3_text_tokenizers(prefix):")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as Python does by itself
        registry = load(uses_it.replace('{"letters"', '{f"{prefix}-letters"'))
    assert "old-letters" in registry.names("text_tokenizer")
    assert caplog.messages == [f"plugin 'old' ({tmp_path / 'old.py'}): {gone}; update it"]
    caplog.clear()
    # the bundled plugin and this one leave it out: nothing is told
    assert "letters" in load(PLUGIN).names("text_tokenizer")
    assert caplog.messages == []


def test_a_deprecated_hook_is_asked_and_told(
    load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @hookspecs.hookspec(
        warn_on_impl=FutureWarning(
            "cm3_text_tokenizers is called cm3_tokenizers from plugin API 2 on"
        )
    )
    def cm3_text_tokenizers() -> None: ...

    with_hook(monkeypatch, cm3_text_tokenizers, {})
    assert "letters" in load(PLUGIN).names("text_tokenizer")
    (line,) = [message for message in caplog.messages if message.startswith("plugin 'old'")]
    assert line == (
        f"plugin 'old' ({tmp_path / 'old.py'}): cm3_text_tokenizers is called cm3_tokenizers "
        "from plugin API 2 on; "
        "update it"
    )


def test_the_list_tells_what_is_deprecated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(describe, "CM3_API", 2)
    (tmp_path / "old.py").write_text(PLUGIN, encoding="utf-8")
    assert main(["--plugin", str(tmp_path / "old.py"), "plugin", "list"]) == 0
    assert capsys.readouterr().out.endswith(
        "old (file)  loaded\n  text_tokenizer: letters\n  deprecated: is written for plugin "
        "API 1; this cm3leon has 2 and still supports it\n"
    )


def test_deprecations_do_not_break_strict_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "CM3_API", 2)
    (bundled,) = [
        info
        for info in load_registry(environ={"CM3_STRICT_PLUGINS": "1"}).plugins
        if info.name == "bundled"
    ]
    assert bundled.status == "loaded"


def test_a_renamed_key_is_read_by_its_old_name(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    registry = load(PLUGIN)
    recipe = compose("tiny", ["text_tokenizer=letters", "text_tokenizer.size=7"], registry=registry)
    assert vars(recipe.text_tokenizer) == {"vocab_size": 7}
    assert caplog.messages == [
        "command line: text_tokenizer.size: the key is now called 'vocab_size': use that, the "
        "old name will be removed"
    ]
    assert recipe.origins["text_tokenizer.vocab_size"] == "command line"


def test_a_checkpoints_recipe_with_the_old_name_is_read(
    load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    registry = load(PLUGIN)
    now = compose("tiny", ["text_tokenizer=letters"], registry=registry)
    then = now.to_yaml().replace("  vocab_size: 3\n", "  size: 3\n")
    assert then != now.to_yaml()
    assert recipe_from_yaml(then, registry).hash == now.hash
    assert [message.split(": the key")[0] for message in caplog.messages] == [
        "recipe.yaml: text_tokenizer.size"
    ]


def test_both_names_of_a_key_are_refused(load: Load) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(
            "tiny",
            ["text_tokenizer=letters", "text_tokenizer.size=7", "text_tokenizer.vocab_size=8"],
            registry=load(PLUGIN),
        )
    assert tells(caught.value, "command line: text_tokenizer.size: is the ... 'vocab_size'")
