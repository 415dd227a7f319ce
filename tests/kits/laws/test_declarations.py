"""Whatever a component may declare is tried by a law: no member of an interface, and none of its config, is missing from
the kits."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest

import cm3kits
from cm3core.plugins import KINDS

#: Members that laws try without naming them -> the call by which they do.
CALLED = {
    "Layout.between": "Serializer writes it between segments",
    "Retriever.is_excluded": "retrieve asks it of each result",
    "DocumentSourceConfig.structures": "every_key_counts",
}


def words_of(source: str) -> set[str]:
    """The attributes, keywords and texts in a source."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword):
            found.add(node.arg or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def kit_words(kind: str) -> set[str]:
    """Those of a kind's kit: of the modules of the classes that its laws are in, and of their private helpers."""
    module, _, name = KINDS[kind].kit.partition(":")
    kit = getattr(importlib.import_module(module), name)
    files = {Path(inspect.getfile(one)) for one in kit.__mro__ if one.__module__[:7] == "cm3kits"}
    files |= set(Path(cm3kits.__file__).parent.glob("_*.py"))
    return set[str]().union(*(words_of(path.read_text()) for path in files))


def declarations(cls: type) -> dict[str, type]:
    """The public members of a class that are no keys of a recipe -> the class that has them."""
    keys = {one.name for one in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return {
        name: base
        for base in reversed(cls.__mro__)
        if base.__module__.startswith("cm3core.interfaces")
        for name in (*vars(base), *vars(base).get("__annotations__", {}))
        if not name.startswith("_") and name not in keys
    }


def is_told_by_offers(base: type, name: str) -> bool:
    """Whether `offers` or `requires` of the same class returns what a member says: a law tries these."""
    methods = [vars(base).get(one) for one in ("offers", "requires")]
    return any(
        name in words_of(textwrap.dedent(inspect.getsource(one)))
        for one in methods
        if one is not None
    )


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_may_be_declared_is_tried(kind: str) -> None:
    tried = kit_words(kind)
    untried = [
        f"{base.__name__}.{name}"
        for cls in (KINDS[kind].interface_class, KINDS[kind].config)
        for name, base in declarations(cls).items()
        if name not in tried and not is_told_by_offers(base, name)
    ]
    assert [one for one in untried if one not in CALLED] == []


def test_a_member_that_no_law_tries_is_found() -> None:
    found = declarations(KINDS["embedder"].interface_class)
    assert "knows_word" in found
    assert "knows_word" not in words_of(
        "def law_nothing(self):\n    '''Nothing.'''\n    self.subject.fingerprint"
    )
