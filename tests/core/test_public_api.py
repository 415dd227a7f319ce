"""No public name, signature, field or hook changes unseen: `public_api.txt` has them all, as this
file reads them from the code.

Which names are public stands in docs/plugins/public-names.md. `python tests/core/test_public_api.py`
writes the list anew.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "plugins" / "public-names.md"
SNAPSHOT = Path(__file__).parent / "public_api.txt"
COMMAND = "python tests/core/test_public_api.py"
OURS = ("cm3core", "cm3run", "cm3kits", "cm3plugins", "cm3apps")


def public_names(page: str) -> dict[str, list[str]]:
    """Module -> names, from the page's table."""
    rows = re.findall(r"^\| `([\w.]+)` \| (`.*?) \|", page, re.MULTILINE)
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


def api_lines(names: dict[str, list[str]]) -> list[str]:
    """The public API, a line each."""
    lines = []
    for module, listed in names.items():
        for name in listed:
            lines += described(f"{module}.{name}", getattr(importlib.import_module(module), name))
    return lines


def described(place: str, value: Any) -> Iterator[str]:
    """A function with its signature; a class with its bases, fields and members; a constant with
    its type, a version's value."""
    if inspect.isclass(value):
        yield from class_lines(place, value)
    elif inspect.isfunction(value):
        yield f"{place}{signature(value)}"
    elif isinstance(value, int):
        yield f"{place} = {value!r}"
    else:
        yield f"{place}: {type(value).__name__}"


def class_lines(place: str, cls: type[Any]) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {place}({bases})"
    if dataclasses.is_dataclass(cls):
        for item in dataclasses.fields(cls):
            yield f"{place}.{item.name}: {item.type}{field_default(item)}  [field]"
    elif "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
        yield f"{place}.__init__{signature(cls.__init__)}"
    for owner in reversed([base for base in cls.__mro__ if base.__module__.startswith(OURS)]):
        # a test that patches a member moves it to the end
        for name, member in sorted(vars(owner).items()):
            if inspect.getattr_static(cls, name) is member:
                yield from member_line(f"{place}.{name}", name, member)


def member_line(place: str, name: str, member: Any) -> Iterator[str]:
    """A public member; also one with an underscore where implementations must define it. Laws of
    kits are no promise."""
    abstract = getattr(member, "__isabstractmethod__", False)
    if (name.startswith("_") and not abstract) or name.startswith("law_"):
        return
    mark = "  [abstract]" if abstract else ""
    if isinstance(member, property):
        assert member.fget is not None
        yield f"{place}: {inspect.signature(member.fget).return_annotation}  [property]{mark}"
    elif isinstance(member, (classmethod, staticmethod)):
        yield f"{place}{signature(member.__func__)}  [{type(member).__name__}]{mark}"
    elif inspect.isfunction(member):
        yield f"{place}{signature(member)}{mark}"


class Something:
    """Stands for a default whose text differs from machine to machine, like `os.environ`."""

    def __repr__(self) -> str:
        return "..."


def signature(function: Any) -> str:
    """A signature; annotations are texts, and shown as they were written."""
    shown = inspect.signature(function)
    parameters = [
        item
        if item.default is item.empty
        or isinstance(item.default, (type(None), bool, int, float, str, tuple))
        else item.replace(default=Something())
        for item in shown.parameters.values()
    ]
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(shown.replace(parameters=parameters)))


def field_default(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return f" = {item.default_factory()!r}"
    return "" if item.default is dataclasses.MISSING else f" = {item.default!r}"


def changes(written: list[str], found: list[str]) -> str:
    """What differs, in lines that a reviewer can read."""
    return "\n".join(
        line
        for line in difflib.unified_diff(
            written, found, "public_api.txt", "the code", n=0, lineterm=""
        )
        if not line.startswith("@@")
    )


def test_the_public_api_is_the_one_that_was_promised() -> None:
    written = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    found = api_lines(public_names(PAGE.read_text(encoding="utf-8")))
    assert written == found, (
        "the public API has changed. If that is meant: does CM3_API grow "
        "(docs/plugins/stability.md)? Say it in CHANGELOG.md, "
        f"and run `{COMMAND}`.\n{changes(written, found)}"
    )


def test_the_page_lists_everything_that_modules_export() -> None:
    """`__all__` of the modules that have one and are public whole; every hook; every error; every
    kit."""
    from cm3core import errors, hookspecs
    from cm3core.plugins import KINDS

    names = public_names(PAGE.read_text(encoding="utf-8"))
    for module in ("cm3core", "cm3core.interfaces", "cm3core.recipe"):
        assert set(names[module]) == set(importlib.import_module(module).__all__), module
    assert {name for name in vars(hookspecs) if name.startswith("cm3_")} <= set(
        names["cm3core.hookspecs"]
    )
    assert {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.CM3Error)
    } < set(names["cm3core.errors"])
    for kind in KINDS.values():
        module, _, kit = kind.kit.partition(":")
        assert kit in names[module]
        assert {kind.config.__name__, kind.interface} <= set(names["cm3core.interfaces"])


def test_every_kind_of_change_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On classes of this test: each changed thing is a changed line."""

    def lines(source: str) -> list[str]:
        module = ModuleType("cm3core.somewhere")
        # dataclasses look their module up
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(f"from __future__ import annotations\nimport abc, dataclasses\n{source}", vars(module))
        return list(described("place", module.Public))

    source = (
        "@dataclasses.dataclass\nclass Public(abc.ABC):\n    size: int = 3\n    kind: str = 'a'\n"
        "    def told(self, a: int, *, b: str | None = None) -> int: ...\n    @property\n    def "
        "width(self) -> int: ...\n"
        "    @classmethod\n    def made(cls) -> Public: ...\n    @abc.abstractmethod\n    def "
        "_yours(self) -> int: ...\n"
        "    def _ours(self) -> int: ...\n"
    )
    before = lines(source)
    assert before == [
        "class place(ABC)",
        "place.size: int = 3  [field]",
        "place.kind: str = 'a'  [field]",
        "place._yours(self) -> int  [abstract]",
        "place.made(cls) -> Public  [classmethod]",
        "place.told(self, a: int, *, b: str | None = None) -> int",
        "place.width: int  [property]",
    ]
    for old, new in (
        ("size: int = 3", "size: int = 4"),
        ("size: int", "length: int"),
        ("a: int", "a: float"),
        ("*, b", "b"),
        ("def width", "def breadth"),
        ("    @property\n", ""),
        ("_yours(self)", "_yours(self, more)"),
        ("    @abc.abstractmethod\n    def _yours", "    def yours"),
        ("made(cls)", "made(cls, x)"),
        ("told", "said"),
    ):
        assert lines(source.replace(old, new)) != before, (old, new)
    assert lines(source.replace("_ours(self)", "_ours(self, more)")) == before
    assert changes(before, lines(source.replace("size: int = 3", "size: int = 4"))).splitlines()[
        2:
    ] == ["-place.size: int = 3  [field]", "+place.size: int = 4  [field]"]


@pytest.mark.parametrize(
    "row", ["| `cm3core.a` | `b`, `c` | for |", "| `cm3core.a` | `b`, `c` | |"]
)
def test_the_table_is_read(row: str) -> None:
    assert public_names(f"# Public names\n\n| module | names | for |\n{row}\n") == {
        "cm3core.a": ["b", "c"]
    }


if __name__ == "__main__":
    SNAPSHOT.write_text(
        "\n".join(api_lines(public_names(PAGE.read_text(encoding="utf-8")))) + "\n",
        encoding="utf-8",
    )
    print(SNAPSHOT)
