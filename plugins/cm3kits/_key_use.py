"""Whether anything reads a key of a config: while components are built and called, or in the plugin's source."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: Functions of a config that read keys to check, copy or print them.
_NO_USE = {"check", "check_fields", "__repr__", "__eq__", "__init__", "__post_init__", "protocol"}
#: Files of the machinery that reads all keys.
_MACHINERY = {
    "dataclasses.py",
    "copy.py",
    "schema.py",
    "component.py",
    "_config_laws.py",
    "_findings.py",
}
#: Source files of a plugin's package that are looked at.
_MOST_FILES = 60


class UnusedKeyWarning(UserWarning):
    """A key that is read seems to change nothing."""


@contextmanager
def keys_read(config_class: type[Any], found: set[str]) -> Iterator[None]:
    """Within it, the names of a config's keys that are read are added to `found`, but for reads of its own
    `check` and of what copies and prints configs."""
    before: Any = config_class.__getattribute__
    own = "__getattribute__" in config_class.__dict__

    def noting(self: Any, name: str) -> Any:
        if not name.startswith("__"):
            code = sys._getframe(1).f_code
            if code.co_name not in _NO_USE and Path(code.co_filename).name not in _MACHINERY:
                found.add(name)
        return before(self, name)

    type.__setattr__(config_class, "__getattribute__", noting)
    try:
        yield
    finally:
        if own:
            type.__setattr__(config_class, "__getattribute__", before)
        else:
            type.__delattr__(config_class, "__getattribute__")


def is_mentioned(key: str, *parts: Any) -> bool:
    """Whether the modules of these classes and objects, or their packages, read an attribute of this name, or
    have it as a text, outside of a config's `check`."""
    return any(key in _mentions(path) for path in _files(parts))


def _files(parts: tuple[Any, ...]) -> list[Path]:
    found: dict[Path, None] = {}
    for part in parts:
        with suppress(TypeError, OSError):
            path = Path(inspect.getfile(part if isinstance(part, type) else type(part)))
            found[path] = None
            if (path.parent / "__init__.py").is_file():
                found.update(dict.fromkeys(sorted(path.parent.glob("*.py"))[:_MOST_FILES]))
    return list(found)


def _mentions(path: Path) -> set[str]:
    """Attributes that a file reads, and its texts without spaces."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    return set(_names(tree))


def _names(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef) and child.name in _NO_USE:
            continue
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from _names(child)
