"""What README.md says of components, kernels and its plugin is so."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _words
import pytest

from cm3core.document import Text, text_of
from cm3core.plugins import load_registry
from cm3plugins.retrievers import BM25RetrieverConfig

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGE = README.read_text(encoding="utf-8")
BUDGET = json.loads((ROOT / "kernels/cm3kernels/budget.json").read_text(encoding="utf-8"))


def rows_below(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_components_to_swap_are_bundled() -> None:
    rows = rows_below("Swap any part by one line")
    assert len(rows) >= 5
    registry = load_registry()
    for key, cell in rows:
        (kind,) = names_in(key)
        bundled = {
            name
            for name in registry.names(kind)
            if {"bundled", "icons"} & {*registry.owners(kind, name)}
        }
        assert set(names_in(cell)) <= bundled
        assert "others" in cell or set(names_in(cell)) == bundled


def test_kernels_are_compiled_for_what_the_table_says() -> None:
    compiled: dict[str, set[str]] = {}
    for budget in BUDGET.values():
        for name, targets in budget["entries"].items():
            compiled.setdefault(name.split(".")[0], set()).update(targets)
    told = {name: cell for ops, _, cell in rows_below("Kernels") for name in names_in(ops)}
    assert told.pop("few_rows") == "CPUs"
    assert {
        name: {f"sm_{arch}" for arch in cell.split(", ")} for name, cell in told.items()
    } == compiled


@pytest.mark.slow
def test_the_plugin_finds_misspelled_words(
    read_blocks: Callable[[Path], list[Any]], tmp_path: Path
) -> None:
    """Among all bundled icons; tests/docs/test_pages.py runs the commands with few of them."""
    (block,) = (block for block in read_blocks(README) if block.file == "mine.py")
    (tmp_path / "mine.py").write_text(block.text, encoding="utf-8")
    plugin = runpy.run_path(str(tmp_path / "mine.py"))
    icons = _words.Texts(_words.icon_captions())

    def first(config: Any) -> str:
        [[found]] = config.build(icons, None).retrieve([(Text("sailbaot, filled"),)], 1)
        return text_of(icons.document(found.index))

    assert first(plugin["TrigramConfig"]()).startswith("sailboat, ")
    assert first(BM25RetrieverConfig()).startswith("test tube")
