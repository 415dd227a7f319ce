"""What a plugin's own sources say: which names they read, and the line that raised an error."""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Functions of a config that read keys only to check, copy or print them.
NO_USE = {"check", "check_fields", "__repr__", "__eq__", "__init__", "__post_init__", "protocol"}
#: Maximum number of a plugin's source files to search.
_MOST_FILES = 60
#: Folders and files whose lines are not a component's.
_OTHERS = (
    "torch",
    "numpy",
    "cm3kits",
    "hypothesis",
    "_pytest",
    "pluggy",
    "contextlib.py",
    "functools.py",
    "_python_dispatch.py",
)


def own_line(error: BaseException) -> str:
    """Return the innermost line of a component in an error's traceback, "" if there is none."""
    return _innermost(traceback.extract_tb(error.__traceback__))


def calling_line() -> str:
    """Return the innermost line of a component that is running."""
    return _innermost(traceback.extract_stack())


def _innermost(frames: traceback.StackSummary) -> str:
    for frame in reversed(frames):
        parts = Path(frame.filename).parts
        if not any(one in parts for one in _OTHERS) and not frame.filename.startswith("<"):
            return f"{parts[-1]}, line {frame.lineno}, in {frame.name}: {frame.line}"
    return ""


@lru_cache(maxsize=256)
def mentions(cls: type[Any]) -> set[str]:
    """Return the attributes that the modules of a class and of its bases in the same distribution read."""
    return {
        node.attr
        for path in _files((cls,))
        for node in _nodes(path)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def is_mentioned(key: str, *parts: Any) -> bool:
    """Whether the modules of these classes and objects, of their bases in the same distribution, or their packages,
    read an attribute with this name, or contain it as a text, outside a config's `check`."""
    return any(key in _mentions(path) for path in _files(parts))


def _files(parts: tuple[Any, ...]) -> list[Path]:
    found: dict[Path, None] = {}
    classes = [part if isinstance(part, type) else type(part) for part in parts]
    for one in (base for own in classes for base in _own_bases(own)):
        with suppress(TypeError, OSError):
            path = Path(inspect.getfile(one))
            found[path] = None
            if (path.parent / "__init__.py").is_file():
                found.update(dict.fromkeys(sorted(path.parent.glob("*.py"))[:_MOST_FILES]))
    return list(found)


def _own_bases(cls: type) -> list[type]:
    """The class and those of its bases that are in the same top-level package."""
    package = cls.__module__.partition(".")[0]
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] == package]


@lru_cache(maxsize=256)
def _mentions(path: Path) -> frozenset[str]:
    """Return the attributes read in a file, and its strings, outside functions that use no key."""
    found = set[str]()
    for node in _nodes(path, NO_USE):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return frozenset(found)


def _nodes(path: Path, without: Collection[str] = ()) -> Iterator[ast.AST]:
    """Yield the nodes of a file's syntax tree, except functions of these names."""
    waiting: list[ast.AST] = []
    with suppress(OSError, SyntaxError, ValueError):
        waiting = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if not (isinstance(child, ast.FunctionDef) and child.name in without):
                yield child
                waiting.append(child)
