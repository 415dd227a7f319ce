"""The pages are what `python docs/_generate.py` writes."""

from __future__ import annotations

import difflib
from pathlib import Path

import _generate
import pytest


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return _generate.pages()


def test_the_pages_are_what_the_command_writes(generated: dict[Path, str]) -> None:
    changes = [
        line
        for page, text in generated.items()
        for line in difflib.unified_diff(
            page.read_text(encoding="utf-8").splitlines(),
            text.splitlines(),
            str(page.relative_to(_generate.DOCS.parent)),
            "generated",
            lineterm="",
        )
    ]
    assert changes == [], f"run `{_generate.COMMAND}`:\n" + "\n".join(changes)


def test_the_pages_with_tables_are_among_them(generated: dict[Path, str]) -> None:
    pages = {str(page.relative_to(_generate.DOCS)) for page in generated}
    assert {
        "plugins/reference.md",
        "icons.md",
        "icons-model.md",
    } <= pages


PAGE = (
    "Before.\n\n<!-- table: one, by python docs/_generate.py -->\n| old |\n<!-- end -->\n\nAfter.\n"
)


def test_a_table_is_written_anew_and_nothing_else() -> None:
    made = _generate.with_tables("page.md", PAGE, {"one": ["| new |", "| --- |"]})
    assert made == PAGE.replace("| old |\n", "| new |\n| --- |\n")


@pytest.mark.parametrize("own", [{}, {"one": [], "two": []}])
def test_a_place_without_a_table_and_a_table_without_a_place(own: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match=r"page\.md has places for the tables \['one'\]"):
        _generate.with_tables("page.md", PAGE, own)
