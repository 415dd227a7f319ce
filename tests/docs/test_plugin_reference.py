"""docs/plugins/reference.md is what docs/_generate.py makes of the code."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

import pytest

from cm3core import interfaces
from cm3core.plugins import KINDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "_generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(generator: ModuleType) -> str:
    text: str = generator.page()
    return text


def test_the_page_is_what_the_code_says(generator: ModuleType, page: str) -> None:
    written = generator.PAGE.read_text(encoding="utf-8")
    changes = "\n".join(
        difflib.unified_diff(
            written.splitlines(),
            page.splitlines(),
            "docs/plugins/reference.md",
            "the code",
            lineterm="",
        )
    )
    assert written == page, (
        f"the code has changed; write the page anew with `{generator.COMMAND}`:\n{changes}"
    )


def test_the_page_of_protocols_is_what_the_code_says(generator: ModuleType) -> None:
    written = generator.PROTOCOL_PAGE.read_text(encoding="utf-8")
    assert generator.with_protocol(written) == written, f"write it anew with `{generator.COMMAND}`"
    assert "| `one_of_a_group` | `true` |" in written


def test_the_inputs_of_ops_are_what_the_code_says(generator: ModuleType) -> None:
    written = generator.KERNELS_PAGE.read_text(encoding="utf-8")
    assert generator.with_inputs(written) == written, f"write it anew with `{generator.COMMAND}`"
    for name in ("attention", "guided_sample", "linear_cross_entropy", "segment_decode"):
        assert f"| `{name}` | |" in written


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
    laws = getattr(importlib.import_module(module), kit).laws()
    assert len(laws) >= 3
    assert [law for law in laws if f"| `{law}` | " not in part] == []
    assert part.count("*Yours.*") >= 1 + len(interface.__abstractmethods__)


def test_docstrings_become_markdown(generator: ModuleType) -> None:
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

    assert generator.prose(documented) == (
        "Pixels &lt;-> `a<b`.\n\nArgs:\n\n- `size`: of it, in pixels.\n- `where`: 0..1.\n\n"
        "Raises:\n\n- `DataError`: it is too large.\n\n```pycon\n>>> 1 + 1\n2\n```\n"
    )


def test_signatures_read_as_they_are_written(generator: ModuleType) -> None:
    def short(a: int, *, b: str | None = None) -> None: ...

    def long(
        first_argument_of_many: int,
        second_argument: int = 3,
        *,
        third_argument: str = "x",
        last: bool = False,
    ) -> str: ...

    assert (
        generator.signature("short", short)
        == "```py\ndef short(a: int, *, b: str | None = None) -> None\n```\n"
    )
    assert generator.signature("long", long) == (
        "```py\ndef long(\n    first_argument_of_many: int,\n    second_argument: int = 3,\n    "
        "*,\n"
        "    third_argument: str = 'x',\n    last: bool = False,\n) -> str\n```\n"
    )
