"""How small a module may be.

A module of a few lines that one neighbour alone imports costs a reader a file more than it is worth.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from source_packages import ALL

#: Modules of fewer lines must have several importers, one in another folder, or one that imports them late.
MIN_LINES = 40
#: Module -> why it is a file of its own nevertheless.
LEFT = {"cm3kits._threads": "tests of components that threads share use it too"}


def modules() -> dict[str, Path]:
    """Name -> file of every module; a package's is `PACKAGE.__init__`."""
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]): path
        for package, folder in ALL.items()
        for path in folder.rglob("*.py")
    }


def imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Every dotted name that a module imports, names in modules too, and whether it is late: in a function."""
    yield from _imports(tree, False)


def _imports(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((one.name, late) for one in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module, late
            yield from ((f"{child.module}.{one.name}", late) for one in child.names)
        elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from _imports(child, late or inner)


def lonely(sources: Mapping[str, str]) -> list[str]:
    """Modules under `MIN_LINES` that only one neighbour imports, when it is imported itself."""
    importers: dict[str, dict[str, bool]] = defaultdict(dict)
    for module, source in sources.items():
        for name, late in imports(ast.parse(source)):
            if name in sources:
                importers[name][module] = importers[name].get(module, True) and late
    return [
        module
        for module, by in sorted(importers.items())
        if len(sources[module].splitlines()) < MIN_LINES
        and len(by) == 1
        and next(iter(by)).rpartition(".")[0] == module.rpartition(".")[0]
        and not next(iter(by.values()))
    ]


def test_no_small_module_has_one_neighbour_alone() -> None:
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert len(sources) > 300
    assert lonely(sources) == sorted(LEFT)


def test_small_modules_are_found() -> None:
    sources = {"p.a": "import p.b", "p.b": "x = 1"}
    assert lonely(sources) == ["p.b"]
    assert lonely(sources | {"p.c": "from p import b"}) == []
    assert lonely(sources | {"p.a": "def f():\n    from p.b import x"}) == []
    assert lonely({"p.a": "from q.b import x", "q.b": "x = 1"}) == []
    assert lonely(sources | {"p.b": "x = 1\n" * MIN_LINES}) == []
