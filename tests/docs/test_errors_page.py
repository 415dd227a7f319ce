"""Every error of the plugin layer is provoked here and says what to do; docs/plugins/check.md explains those whose cause
does not say all, and no others."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

import cm3core
import cm3kits
from cm3apps.cli._process import plugin_failure
from cm3core.errors import CM3Error
from cm3core.interfaces import SamplerConfig
from cm3core.plugins import describe
from cm3core.plugins.discovery import GROUP, add_plugin, load_registry
from cm3core.plugins.registry import PluginInfo, Provider, Registry, Writer, built, default_name
from cm3core.recipe import compose, recipe_from_yaml
from cm3core.recipe.merge import stored_recipe
from cm3core.recipe.recipe import MissingComponent
from cm3kits.sampler import SamplerContract
from cm3kits.text_tokenizer import TextTokenizerContract

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "check.md"
MODULES = tuple(
    folder / name
    for folder, name in (
        (Path(cm3core.__file__).parent, "plugins/discovery.py"),
        (Path(cm3core.__file__).parent, "plugins/info.py"),
        (Path(cm3core.__file__).parent, "plugins/registry.py"),
        (Path(cm3core.__file__).parent, "plugins/describe.py"),
        (Path(cm3core.__file__).parent, "config/schema.py"),
        (Path(cm3core.__file__).parent, "recipe/merge.py"),
        (Path(cm3core.__file__).parent, "recipe/values.py"),
        (Path(cm3kits.__file__).parent, "_laws.py"),
    )
)
#: What raises them: our errors, and the function that makes one for a value of the wrong type.
ERRORS = {"PluginError", "RecipeError", "wrong_type"}
Site = tuple[str, int]

GOOD = """\
from dataclasses import dataclass
from pathlib import Path
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import DecoderConfig, TextTokenizerConfig

CM3_API = 1

@dataclass(kw_only=True)
class LettersConfig(TextTokenizerConfig):
    size: int = 3
    sizes: tuple[int, ...] = (1, 2)
    def build(self, corpus=None): raise AssertionError("described, never built")

@hookimpl
def cm3_text_tokenizers():
    return {"letters": LettersConfig}
"""
#: With components inside a component.
PARTS = GOOD.replace(
    "    size: int", "    parts: dict[str, TextTokenizerConfig] | None = None\n    size: int"
)
HOOK = "\n@hookimpl\ndef {}():\n    return {}\n"


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


#: Sources of a plugin that is broken.
SOURCES = {
    "import raises": "import no_such_module_anywhere\n",
    "import ends the program": "raise SystemExit('enough')\n",
    "hook raises": changed('{"letters": LettersConfig}', "1 / 0"),
    "no API": changed("CM3_API = 1\n", ""),
    "API is no number": changed("CM3_API = 1", "CM3_API = '1'"),
    "API to come": changed("CM3_API = 1", "CM3_API = 7"),
    "unknown hook": changed("def cm3_text_tokenizers", "def cm3_text_tokenizer"),
    "hook not marked": changed("@hookimpl\ndef", "def"),
    "hook with an argument": changed("tokenizers():", "tokenizers(config):"),
    "hook wrapper": changed("@hookimpl", "@hookimpl(wrapper=True)"),
    "no mapping": changed('{"letters": LettersConfig}', "[LettersConfig]"),
    "bad name": changed('"letters"', '"My.Letters"'),
    "instance": changed("LettersConfig}", "LettersConfig()}"),
    "other kind": changed("LettersConfig(TextTokenizerConfig)", "LettersConfig(DecoderConfig)"),
    "no dataclass": changed("@dataclass(kw_only=True)\n", ""),
    "no build": changed("def build", "def built"),
    "unresolved": changed("size: int", "size: 'Nowhere'"),
    "field name": changed("size: int", "name: int"),
    "complex field": changed("size: int", "size: complex"),
    "renamed a field": changed("    size: int", "    renamed = {'size': 'size'}\n    size: int"),
    "renamed to nothing": changed(
        "    size: int", "    renamed = {'length': 'width'}\n    size: int"
    ),
    "commands": GOOD + HOOK.format("cm3_commands", "{'draw': print}"),
    "models": GOOD + HOOK.format("cm3_models", "{'small': 'a/folder'}"),
}
#: Arguments of `compose` with the good plugin, or with one that is changed.
RECIPES: dict[str, tuple[str, list[str]]] = {
    "unknown component": (GOOD, ["text_tokenizer=leters"]),
    "dotted": (GOOD, ["text_tokenizer=my.Letters"]),
    "unknown plugin": (GOOD, ["text_tokenizer=yours/letters"]),
    "not brought": (GOOD, ["text_tokenizer=mine/byte"]),
    "moved": (
        GOOD + "\nCM3_BESIDE = {'text_tokenizer/gone': 'cm3-gone'}\n",
        ["text_tokenizer=gone"],
    ),
    "removed": (
        GOOD + "\nCM3_GONE = {'text_tokenizer/runes': 'use letters'}\n",
        ["text_tokenizer=runes"],
    ),
    "twice": (GOOD.replace('"letters"', '"byte"'), ["text_tokenizer=byte"]),
    "unknown section": (GOOD, ["tokenizer=letters"]),
    "defaults": (GOOD, ["defaults=[tiny]"]),
    "an item of a section": (GOOD, ["train[0]=3"]),
    "an item of a text": (GOOD, ["train.schedule[0]=x"]),
    "an item behind the last": (GOOD, ["train.betas[5]=0.5"]),
    "no mapping": (GOOD, ["train=3"]),
    "name is a number": (GOOD, ["text_tokenizer=3"]),
    "recipe's name": (GOOD, ["name=3"]),
    "recipe's name leads elsewhere": (GOOD, ["name=../../x"]),
    "no name": (GOOD, ["upscaler.path=x"]),
    "unknown key": (GOOD, ["text_tokenizer=letters", "text_tokenizer.sice=3"]),
    "unknown key of a section": (GOOD, ["train.stepps=3"]),
    "wrong type": (GOOD, ["text_tokenizer=letters", "text_tokenizer.size=many"]),
    "wrong type inside": (GOOD, ["text_tokenizer=letters", "text_tokenizer.sizes=[1,x]"]),
    "both names": (
        changed("    size: int", "    renamed = {'length': 'size'}\n    size: int"),
        ["text_tokenizer=letters", "text_tokenizer.size=3", "text_tokenizer.length=3"],
    ),
    "no value": (changed("size: int = 3", "size: int"), ["text_tokenizer=letters"]),
    "no values": (
        GOOD.replace("size: int = 3", "size: int\n    width: int"),
        ["text_tokenizer=letters"],
    ),
    "points nowhere": (GOOD, ["text_tokenizer=letters", "text_tokenizer.size=${decoder.nothing}"]),
    "reads elsewhere": (GOOD, ["text_tokenizer=letters", "text_tokenizer.size=${oc.env:HOME}"]),
    "points to a text": (GOOD, ["text_tokenizer=letters", "text_tokenizer.size=${train.schedule}"]),
    "parts are no mapping": (PARTS, ["text_tokenizer=letters", "text_tokenizer.parts=[byte]"]),
    "part is a number": (PARTS, ["text_tokenizer=letters", "text_tokenizer.parts.a=3"]),
    "part without a name": (PARTS, ["text_tokenizer=letters", "text_tokenizer.parts.a.size=3"]),
    "part's name is a number": (PARTS, ["text_tokenizer=letters", "text_tokenizer.parts.a.name=3"]),
    "needs": (
        changed("    size: int", "    needs = ('upscaler',)\n    size: int"),
        ["text_tokenizer=letters"],
    ),
}


@dataclass
class Setting:
    """Where a case happens: a folder on `sys.path`, and pytest's monkeypatch."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def load(self, source: str = GOOD, name: str = "mine.py") -> Registry:
        (self.folder / name).write_text(source, encoding="utf-8")
        return load_registry([self.folder / name], environ={})

    def install(self, points: str, **modules: str) -> Registry:
        """A distribution with these entry points and modules."""
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source, encoding="utf-8")
        info = self.folder / "errors_page-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: errors-page\nVersion: 1.0\n", encoding="utf-8"
        )
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n", encoding="utf-8")
        importlib.invalidate_caches()
        return load_registry(environ={"CM3_STRICT_PLUGINS": "1"})

    def window(self) -> Registry:
        self.monkeypatch.setattr(describe, "CM3_API", 3)
        self.monkeypatch.setattr(describe, "OLDEST_CM3_API", 2)
        return self.load()

    def no_python(self) -> Registry:
        return self.load(name="mine.txt")

    def commands(self, target: str, *, twice: bool = False) -> object:
        brings = GOOD + HOOK.format("cm3_commands", f"{{'draw': '{target}'}}")
        modules = (
            {"page_a": brings, "page_b": brings.replace("letters", "others")}
            if twice
            else {"page_a": brings}
        )
        return self.install("\n".join(f"{name} = {name}" for name in modules), **modules).command(
            "draw"
        )


def stored(registry: Registry, **known: object) -> object:
    """A stored recipe with a component that the plugin `mine` provided, of some version."""
    provider = Provider("gone", "mine", "cm3-mine", "0.1")
    writer = replace(Writer({"text_tokenizer": provider}), **known)
    text = "text_tokenizer: {name: gone}\n"
    return stored_recipe(text, registry, label="recipe.yaml", writer=writer)


def stored_kind() -> None:
    """A stored recipe with a section of a kind that nobody brings now."""
    writer = Writer({"thing": Provider("gone", "mine", "cm3-mine", "0.1")})
    text = "thing: {name: gone}\n"
    recipe = stored_recipe(text, Registry(), label="recipe.yaml", writer=writer, lenient=True)
    section = recipe.section("thing")
    assert isinstance(section, MissingComponent)
    section.refuse()


def failing(setting: Setting) -> None:
    """What the command line makes of an exception in a plugin's code."""
    registry = setting.load(changed('raise AssertionError("described, never built")', "1 / 0"))
    try:
        registry.config_class("text_tokenizer", "letters")().build()  # type: ignore[attr-defined]  # text tokenizers have it
    except ZeroDivisionError as error:
        failure = plugin_failure(error)
        assert failure is not None
        raise failure from error


def with_build(**attributes: object) -> type[SamplerConfig]:
    return type("MyConfig", (SamplerConfig,), {"build": lambda self: None, **attributes})


def kit(**attributes: object) -> object:
    return type("TestMine", (SamplerContract,), {"config": with_build()(), **attributes})


def needing() -> object:
    from dataclasses import make_dataclass

    config = make_dataclass("MyConfig", [("weights", str)], bases=(SamplerConfig,), kw_only=True)
    return type("TestMine", (SamplerContract,), {"config": config})


#: A plugin that brings a kind: its config's base, then the row; %s is what differs.
KIND = """
from abc import ABC
from dataclasses import dataclass
from cm3core.hookspecs import hookimpl
from cm3core.interfaces import ComponentConfig
from cm3core.plugins import Kind
CM3_API = 1
class Thing(ABC): ...
@dataclass(kw_only=True)
class ThingConfig(ComponentConfig):
    kind = "thing"
    def build(self) -> Thing: ...
@dataclass(kw_only=True)
class Unbuilt(ComponentConfig):
    kind = "thing"
@hookimpl
def cm3_kinds():
    return {}
"""


def kinds(answer: str = "", **changed: str) -> Callable[[Setting], object]:
    """A plugin whose hook returns that, or a row with some arguments changed."""
    row = {
        "hook": "'cm3_things'", "config": "ThingConfig", "interface": "'Thing'", "kit": "''",
        "words": "'things'", "summary": "'things are made'",
    } | changed  # fmt: skip  # a row
    made = answer or f"[Kind({', '.join(f'{key}={value}' for key, value in row.items())})]"
    return lambda setting: setting.load(KIND.replace("return {}", f"return {made}"))


CASES: dict[str, Callable[[Setting], object]] = {
    "kinds: of a plugin that is gone": lambda setting: stored_kind(),
    "kinds: no list": kinds("{'thing': ThingConfig}"),
    "kinds: no base of configs": kinds(config="Thing"),
    "kinds: name": kinds(
        config="type('Odd', (ThingConfig,), {'kind': 'Thing!', '__dataclass_fields__': {}})"
    ),
    "kinds: taken": kinds(
        config="type('Odd', (ThingConfig,), {'kind': 'sampler', '__dataclass_fields__': {}})"
    ),
    "kinds: hook's name": kinds(hook="'things'"),
    "kinds: hook taken": kinds(hook="'cm3_samplers'"),
    "kinds: no interface": kinds(interface="'Nothing'"),
    "kinds: no build": kinds(config="Unbuilt"),
    "kinds: kit": kinds(kit="'nowhere'"),
    "kinds: no words": kinds(words="' '"),
    **{
        f"plugin: {name}": lambda setting, source=source: setting.load(source)
        for name, source in SOURCES.items()
    },
    **{
        f"recipe: {name}": lambda setting, source=source, overrides=overrides: compose(
            "tiny", overrides, registry=setting.load(source)
        ).check()
        for name, (source, overrides) in RECIPES.items()
    },
    "no file": lambda setting: load_registry([setting.folder / "nothing.py"], environ={}),
    "no Python": Setting.no_python,
    "outside the window": Setting.window,
    "two of one name": lambda setting: setting.install("bundled = page_a", page_a=GOOD),
    "one module twice": lambda setting: setting.install("a = page_a\nb = page_a", page_a=GOOD),
    "command from two": lambda setting: setting.commands("page_a:f", twice=True),
    "command from nowhere": lambda setting: setting.commands("page_nowhere:f"),
    "command is no function": lambda setting: setting.commands("page_a:CM3_API"),
    "trusted file": lambda setting: add_plugin(
        Registry(), PluginInfo("mine", "", "mine.py"), lambda: 1 / 0
    ),
    "resolved recipe extends": lambda setting: recipe_from_yaml("extends: [tiny]\n", Registry()),
    "stored by a plugin that is gone": lambda setting: stored(Registry()),
    "stored before providers were": lambda setting: stored(
        Registry(), providers={}, plugins={"mine": "0.1"}
    ),
    "stored by another version": lambda setting: stored(setting.load()),
    "component of no plugin": lambda setting: setting.load().config_class(
        "text_tokenizer", "yours/letters"
    ),
    "no default": lambda setting: default_name(Registry(), "extractor", place="the reranker"),
    "builds nothing": lambda setting: built(None, with_build()()),
    "fails": lambda setting: failing(setting),
    "kit: other kind": lambda setting: type(
        "TestMine", (TextTokenizerContract,), {"config": with_build()()}
    ),
    "kit: no such law": lambda setting: kit(waive_nothing=lambda self: "why"),
    "kit: no reason": lambda setting: kit(waive_only_legal_ids_are_drawn=lambda self: ""),
    "kit: hidden law": lambda setting: kit(test_only_legal_ids_are_drawn=None),
    "kit: no default": lambda setting: needing(),
}


@cache
def raises() -> dict[Site, range]:
    """Every `raise` of one of our errors in the modules: (module, first line) -> its lines."""
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Call)
                and getattr(node.exc.func, "id", "") in ERRORS
            ):
                assert node.end_lineno is not None
                found[path.name, node.lineno] = range(node.lineno, node.end_lineno + 1)
            elif isinstance(node, ast.Return):
                assert "PluginError(" not in ast.unparse(node), (
                    f"{path.name}, line {node.lineno}: raise it there"
                )
    return found


def patterns() -> list[str]:
    """The first column of the page's table of errors."""
    part = PAGE.read_text(encoding="utf-8").split("\n## Errors\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`+)(.+?)\1 \|", part, re.MULTILINE)
    return [text for _, text in cells]


def says(pattern: str, cause: str) -> bool:
    """Whether a cause is one of that pattern, in which `...` stands for any text."""
    return re.fullmatch(re.escape(pattern).replace(r"\.\.\.", ".+"), cause, re.DOTALL) is not None


def sites_of(error: BaseException) -> Iterator[Site]:
    """The `raise` that made the error, and those of its causes."""
    known, link = raises(), error
    while link is not None:
        frames = []
        trace = link.__traceback__
        while trace is not None:
            frames.append((Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno))
            trace = trace.tb_next
        if frames and frames[-1][0] in MODULES:
            path, line = frames[-1]
            yield from (
                site for site, lines in known.items() if site[0] == path.name and line in lines
            )
        link = link.__cause__


@pytest.fixture(scope="module")
def provoked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CM3Error]:
    """Case -> the error that it raises."""
    errors = {}
    for name, case in CASES.items():
        before = set(sys.modules)
        with pytest.MonkeyPatch.context() as monkeypatch:
            folder = tmp_path_factory.mktemp("case")
            monkeypatch.syspath_prepend(str(folder))
            with pytest.raises(CM3Error) as caught:
                case(Setting(folder, monkeypatch))
        errors[name] = caught.value
        for module in {
            module
            for module in set(sys.modules) - before
            if module.startswith(("page_", "cm3_plugin_file_"))
        }:
            del sys.modules[module]
    return errors


@pytest.mark.parametrize("name", CASES)
def test_the_error_says_what_to_do(name: str, provoked: dict[str, CM3Error]) -> None:
    error = provoked[name]
    assert error.place
    assert error.cause
    assert error.next_step


def test_every_raise_is_provoked(provoked: dict[str, CM3Error]) -> None:
    """A new `raise` needs a case here."""
    reached = {site for error in provoked.values() for site in sites_of(error)}
    missing = sorted(set(raises()) - reached)
    assert not missing, missing
    assert len(reached) >= 40


def test_every_row_of_the_page_is_raised(provoked: dict[str, CM3Error]) -> None:
    """The nearest row counts (the longest pattern): `... returned ...` is no proof of
    `... returned ..., not a mapping`."""
    raised = set()
    for error in provoked.values():
        matching = [pattern for pattern in patterns() if says(pattern, error.cause)]
        raised |= (
            {max(matching, key=lambda pattern: len(pattern.replace("...", "")))}
            if matching
            else set()
        )
    assert sorted(set(patterns()) - raised) == []
    assert len(patterns()) == len(set(patterns()))


def test_patterns_are_strict() -> None:
    assert says("no ... is called ...", "no decoder is called 'x'")
    assert not says("no ... is called ...", "no decoder is known as 'x'")
    assert not says("does not state CM3_API", "does not state CM3_API at all")
