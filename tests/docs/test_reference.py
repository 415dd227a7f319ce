"""docs/reference.md names everything there is: a new hook, command, option, variable, component or
recipe must be documented."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cm3apps.cli.main import COMMANDS
from cm3core import hookspecs, interfaces
from cm3core.plugins import KINDS, load_registry
from cm3core.recipe import library
from cm3core.recipe.sections import FIXED_SECTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
NO_VARIABLE = {"CM3_API", "CM3_BESIDE", "CM3_DEFAULT_MODELS", "CM3_GONE"}


def row(first_cell: str, page: str = PAGE) -> str:
    """The table row that begins with this cell, or with this word of it."""
    rows = [
        line for line in page.splitlines() if re.match(rf"\| {re.escape(first_cell)}[ `]", line)
    ]
    assert len(rows) == 1, f"{first_cell}: {len(rows)} rows"
    return rows[0]


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and action, those of bundled plugins too, with its parser."""
    registry = load_registry()
    for name in sorted({*COMMANDS, *registry.commands()}):
        module = COMMANDS.get(name, ("", ""))[0]
        configure = importlib.import_module(module).configure if module else registry.command(name)
        parser = argparse.ArgumentParser()
        configure(parser)
        groups = [
            action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        ]
        if not groups:
            yield name, parser
        for group in groups:
            yield from ((f"{name} {action}", inner) for action, inner in group.choices.items())


def test_every_hook_is_documented() -> None:
    names = [name for name in vars(hookspecs) if name.startswith("cm3_")]
    assert len(names) == len(KINDS) + 4
    assert [name for name in names if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_documented_and_its_row_is_true(kind: str) -> None:
    section, hook, interface, kit, bundled = (
        cell.strip() for cell in row(f"`{kind}` |").strip("|").split("|")
    )
    assert (section, hook) == (f"`{kind}`", f"`{KINDS[kind].hook}`")
    assert hasattr(interfaces, interface.strip("`"))
    assert_kit_exists(kit)
    assert set(re.findall(r"`([^`]+)`", bundled)) == set(load_registry().names(kind))


def assert_kit_exists(kit: str) -> None:
    """`module.Class` of cm3kits; read, because importing some kits takes seconds."""
    module, name = kit.strip("`").split(".")
    assert f"class {name}(" in (ROOT / "plugins" / "cm3kits" / f"{module}.py").read_text(
        encoding="utf-8"
    )


def test_every_command_and_option_is_documented() -> None:
    missing = []
    shared = PAGE.split("Options of a model: ")[1].split("\n\n")[0]
    for name, parser in commands():
        line = row(f"`cm3 {name}")
        documented = line + (shared if "those of a model" in line else "")
        options = [
            action.option_strings
            for action in parser._actions
            if action.option_strings and action.dest != "help"
        ]
        missing += [
            f"cm3 {name} {names[-1]}"
            for names in options
            if not re.search(rf"`{names[-1]}[` ]", documented)
        ]
        assert ("overrides" in line) == any(
            action.dest in {"overrides", "arguments"} for action in parser._actions
        ), name
    assert missing == []


def test_no_option_is_documented_that_is_gone() -> None:
    known = {
        option
        for _, parser in commands()
        for action in parser._actions
        for option in action.option_strings
    }
    assert set(re.findall(r"`(--[\w-]+)", PAGE)) - known == set()


def test_every_environment_variable_is_documented() -> None:
    sources = [
        path
        for folder in ("cm3core", "plugins", "kernels")
        for path in (ROOT / folder).rglob("*.py")
    ]
    names = {
        name
        for path in sources
        for name in re.findall(r"\bCM3_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    } - NO_VARIABLE
    assert {"CM3_CACHE", "CM3_STRICT_PLUGINS", "CM3_DISABLE_PLUGINS"} <= names
    assert names == set(re.findall(r"^\| `(CM3_[A-Z_]+)` \|", PAGE, re.MULTILINE))


def test_every_recipe_and_section_is_documented() -> None:
    folder = library.recipes_directory()
    extended = [path.stem for path in (folder / "base").glob("*.yaml")]
    recipes = [*(recipe.name for recipe in library.list_recipes()), *extended]
    assert [name for name in [*recipes, *FIXED_SECTIONS] if f"`{name}`" not in PAGE] == []
