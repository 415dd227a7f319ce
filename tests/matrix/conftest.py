"""The ingredients of a session, and the law that every cell is under."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest

from swapping.cells import run_cell
from swapping.ingredients import Kitchen
from swapping.plan import Cell
from swapping.report import breaks_a_law, grouped, row_of, summary


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    """The ingredients, with a cache of their own: what is encoded once serves all cells."""
    folder = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CM3_CACHE", str(folder / "cache"))
        patch.setenv(
            "TRITON_INTERPRET", "0"
        )  # as on a machine of a user: interpreted training takes minutes
        yield Kitchen(folder)


@pytest.fixture(scope="session")
def try_cells(kitchen: Kitchen) -> Callable[[Iterable[Cell]], None]:
    """Run cells; fails with the outcomes against a law, grouped by message."""

    def run(cells: Iterable[Cell]) -> None:
        rows = [row_of(run_cell(cell, kitchen)) for cell in cells]
        assert rows, "there are no cells"
        assert not breaks_a_law(rows), f"\n{summary(rows)}\n\n{grouped(rows)}"

    return run
