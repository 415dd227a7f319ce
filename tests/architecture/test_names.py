"""The core knows no component by name: a property of the config says what makes one special."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from cm3core.plugins import KINDS, load_registry

ROOT = Path(__file__).parents[2]
#: Tools that write or test components of their own.
LEFT_OUT = ("_scaffold", "testing")
#: (file, text) -> what the text means there; it is no component's name.
OTHER_MEANINGS = {
    ("cli/_completion.py", "cm3"): "the program",
    ("cli/main.py", "cm3"): "the program",
    ("cli/_completion.py", "cm3leon"): "the distribution",
    ("_version.py", "cm3leon"): "the distribution",
    ("boxes.py", "boxes"): "what a text holds",
    ("cli/ask.py", "template"): "an option",
    ("cli/chat.py", "chat"): "the command",
    ("cli/chat.py", "conversations"): "what a model is tuned for",
    ("cli/edit.py", "edit"): "the command",
    ("cli/task.py", "structure"): "a method of a model",
    ("commands.py", "caption"): "a command",
    ("commands.py", "chat"): "a command",
    ("commands.py", "edit"): "a command",
    ("interfaces/dataset.py", "caption"): "a field of records",
    ("interfaces/task.py", "caption"): "a method of a model",
    ("interfaces/task.py", "edit"): "a method of a model",
    ("interfaces/task.py", "structure"): "a method of a model",
    ("model/drawing.py", "edit"): "a method of a model",
    ("model/drawing.py", "structure"): "a method of a model",
    ("model/tasks.py", "caption"): "a method of a model",
    ("model/tasks.py", "edit"): "a method of a model",
    ("model/tasks.py", "structure"): "a method of a model",
    ("model/tasks.py", "template"): "an argument",
    ("model/writing.py", "caption"): "a method of a model",
    ("user_folders.py", "cm3leon"): "the distribution's cache folder",
    ("plugin_check/targets.py", "cm3leon"): "the distribution",
    ("commands.py", "icons"): "a plugin's command, in the table of --help",
    ("config/overrides.py", "top_p"): "a sampler's key",
    ("generation/__init__.py", "likelihood"): "a module",
    ("interfaces/sampler.py", "none"): "which texts are hidden",
    ("sequence/prompt_variants.py", "none"): "which texts are hidden",
    ("plugin_check/probe.py", "none"): "how many keys there are",
    ("training/loss.py", "none"): "a group of tokens",
    ("checkpoint/state.py", "tokens"): "how many were trained on",
    ("cli/task.py", "tokens"): "how many a document has",
    ("interfaces/objective.py", "tokens"): "a field of sequences",
    ("interfaces/benchmark.py", "tokens"): "how many a case draws",
    ("training/loop.py", "tokens"): "how many were trained on",
}


def texts(tree: ast.Module) -> Iterator[str]:
    """Every string constant but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield text


def named(source: str, names: frozenset[str]) -> set[str]:
    """The components that a module names, also as `plugin/name`."""
    found = set(texts(ast.parse(source)))
    return {text for text in found if text.rpartition("/")[2] in names}


def bundled() -> frozenset[str]:
    """Names of all components that come with cm3leon."""
    registry = load_registry()
    return frozenset(
        name
        for kind in KINDS
        for name in registry.names(kind)
        if "bundled" in registry.owners(kind, name)
    )


def test_the_core_names_no_component() -> None:
    core, names = ROOT / "cm3core", bundled()
    found = {
        (path.relative_to(core).as_posix(), text)
        for path in core.rglob("*.py")
        if path.relative_to(core).parts[0] not in LEFT_OUT
        for text in named(path.read_text(encoding="utf-8"), names)
    }
    assert sorted(found - OTHER_MEANINGS.keys()) == []
    assert sorted(OTHER_MEANINGS.keys() - found) == [], "no longer needed"


def test_the_search_finds_names() -> None:
    source = '"""dense"""\nx = ["dense", "bundled/none", "dense or sparse"]\ny: str = "edsr"\n'
    assert named(source, frozenset({"dense", "none", "edsr"})) == {"dense", "bundled/none", "edsr"}
