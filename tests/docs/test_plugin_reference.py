"""docs/plugins/reference.md has all that the code has; test_generated.py compares it with the code."""

from __future__ import annotations

import importlib
import inspect

import _plugin_reference
import pytest

from cm3core import interfaces
from cm3core.plugins import KINDS
from cm3kits._laws import Contract


@pytest.fixture(scope="module")
def page() -> str:
    return _plugin_reference.page()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_told_whole(kind: str, page: str) -> None:
    """Hook, config, everything abstract in the interface, every law; a generator that drops one
    would agree with its own page."""
    part = page.split(f"\n## `{kind}`\n")[1].split("\n## ")[0]
    assert f"def {KINDS[kind].hook}()" in part
    assert f"### Config: `{KINDS[kind].config.__name__}`" in part
    interface = getattr(interfaces, KINDS[kind].interface)
    for name in interface.__abstractmethods__:
        is_property = isinstance(inspect.getattr_static(interface, name), property)
        assert (f"\n{name}: " if is_property else f"def {name}(") in part
    module, _, kit = KINDS[kind].kit.partition(":")
    laws = set(getattr(importlib.import_module(module), kit).laws()) - set(Contract.laws())
    assert len(laws) >= 3
    assert [law for law in laws if f"| `{law}` | " not in part] == []
    assert part.count("*Yours.*") >= 1 + len(interface.__abstractmethods__)


def test_docstrings_become_markdown() -> None:
    def documented() -> None:
        """Pixels <-> `a<b`.

        Args:
            size: of it,
                in pixels.
            where: 0..1.

        Raises:
            DataError: it is too large.

        >>> 1 + 1
        2
        """

    assert _plugin_reference.prose(documented) == (
        "Pixels &lt;-> `a<b`.\n\nArgs:\n\n- `size`: of it, in pixels.\n- `where`: 0..1.\n\n"
        "Raises:\n\n- `DataError`: it is too large.\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    )


def test_signatures_read_as_they_are_written() -> None:
    def short(a: int, *, b: str | None = None) -> None: ...

    def long(
        first_argument_of_many: int,
        second_argument: int = 3,
        *,
        third_argument: str = "x",
        last: bool = False,
    ) -> str: ...

    assert (
        _plugin_reference.signature("short", short)
        == "```py\ndef short(a: int, *, b: str | None = None) -> None\n```\n"
    )
    assert _plugin_reference.signature("long", long) == (
        "```py\ndef long(\n    first_argument_of_many: int,\n    second_argument: int = 3,\n    "
        "*,\n"
        "    third_argument: str = 'x',\n    last: bool = False,\n) -> str\n```\n"
    )
