"""The ingredients of a session, and the law that every cell is under."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from swapping.cells import run_cell
from swapping.ingredients import Kitchen
from swapping.plan import Cell
from swapping.report import breaks_a_law, grouped, row_of, summary


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the ingredients, and of their cache: what is encoded once serves all cells."""
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(autouse=True)
def _as_a_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the ingredients, and no interpreter: interpreted training takes minutes. For these tests alone."""
    monkeypatch.setenv("CM3_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.fixture(scope="session")
def kitchen(folder: Path) -> Kitchen:
    """The ingredients, each made when a cell asks for it."""
    return Kitchen(folder)


@pytest.fixture(scope="session")
def try_cells(kitchen: Kitchen) -> Callable[[Iterable[Cell]], None]:
    """Run cells; fails with the outcomes against a law, grouped by message."""

    def run(cells: Iterable[Cell]) -> None:
        rows = [row_of(run_cell(cell, kitchen)) for cell in cells]
        assert rows, "there are no cells"
        assert not breaks_a_law(rows), f"\n{summary(rows)}\n\n{grouped(rows)}"

    return run
