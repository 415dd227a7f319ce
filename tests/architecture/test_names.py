"""The core knows no component by name: a property of the config says what makes one special."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from cm3core.plugins import KINDS, load_registry
from source_packages import PACKAGES

#: What knows components by their kinds only: packages whole, and the folders of the command.
PLACES = ("cm3core", "cm3run", "cm3apps/cli", "cm3apps/plugin_check")
#: (file, text) -> what the text means there; it is no component's name.
OTHER_MEANINGS = {
    ("cli/completion.py", "cm3"): "the program",
    ("cli/main.py", "cm3"): "the program",
    ("cli/sweep.py", "cm3"): "the program",
    ("cli/completion.py", "cm3leon"): "the distribution",
    ("_version.py", "cm3leon"): "the distribution",
    ("boxes.py", "boxes"): "what a text holds",
    ("attribution.py", "svg"): "a format of files",
    ("model/tracing.py", "svg"): "a format of files",
    ("cli/ask.py", "template"): "an option",
    ("cli/chat.py", "chat"): "the command",
    ("cli/chat.py", "conversations"): "what a model is tuned for",
    ("cli/edit.py", "edit"): "the command",
    ("cli/task.py", "structure"): "a method of a model",
    ("cli/commands.py", "caption"): "a command",
    ("cli/commands.py", "chat"): "a command",
    ("cli/commands.py", "edit"): "a command",
    ("cli/_data_export.py", "caption"): "a field of records",
    ("interfaces/dataset.py", "caption"): "a field of records",
    ("interfaces/task.py", "caption"): "a method of a model",
    ("interfaces/task.py", "edit"): "a method of a model",
    ("interfaces/task.py", "structure"): "a method of a model",
    ("model/drawing.py", "edit"): "a method of a model",
    ("model/drawing.py", "structure"): "a method of a model",
    ("model/facts.py", "thing"): "a field of an answer",
    ("model/tasks.py", "structure"): "a method of a model",
    ("model/tasks.py", "template"): "an argument",
    ("tasks.py", "caption"): "a method of a model",
    ("tasks.py", "edit"): "a method of a model",
    ("tasks.py", "structure"): "a method of a model",
    ("life.py", "caption"): "a command",
    ("life.py", "chat"): "a command",
    ("life.py", "structure"): "a method of a model",
    ("life.py", "edit"): "a command",
    ("model/writing.py", "caption"): "a method of a model",
    ("files.py", "cm3leon"): "the distribution's cache folder",
    ("hub/client.py", "cm3leon"): "the distribution, as told to the Hub",
    ("hub/download.py", "cm3leon"): "the distribution, as told to the Hub",
    ("plugin_check/targets.py", "cm3leon"): "the distribution",
    ("cli/commands.py", "icons"): "a plugin's command, in the table of --help",
    ("config/overrides.py", "top_p"): "a sampler's key",
    ("generation/__init__.py", "likelihood"): "a module",
    ("interfaces/sampler.py", "none"): "which texts are hidden",
    ("sequence/prompt_writer.py", "none"): "which texts are hidden",
    ("plugin_check/probe.py", "none"): "how many keys there are",
    ("training/metrics.py", "none"): "a group of tokens",
    ("cli/task.py", "tokens"): "how many a document has",
    ("interfaces/objective.py", "tokens"): "a field of sequences",
    ("benchmarks.py", "tokens"): "how many a case draws",
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
    """Names of all components that come with cm3leon, and of those of icons, which it had."""
    registry = load_registry()
    return frozenset(
        name
        for kind in KINDS
        for name in registry.names(kind)
        if {"bundled", "icons"} & {*registry.owners(kind, name)}
    )


def test_the_core_names_no_component() -> None:
    names = bundled()
    found = {
        (path.relative_to(folder).as_posix(), text)
        for place in PLACES
        for folder in [PACKAGES[place.partition("/")[0]]]
        for path in (folder.parent / place).rglob("*.py")
        for text in named(path.read_text(encoding="utf-8"), names)
    }
    assert sorted(found - OTHER_MEANINGS.keys()) == []
    assert sorted(OTHER_MEANINGS.keys() - found) == [], "no longer needed"


def test_the_search_finds_names() -> None:
    source = '"""dense"""\nx = ["dense", "bundled/none", "dense or sparse"]\ny: str = "edsr"\n'
    assert named(source, frozenset({"dense", "none", "edsr"})) == {"dense", "bundled/none", "edsr"}
