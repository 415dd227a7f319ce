"""What `cm3 recipe check` says of a recipe is what its commands do: for every component alone, and for all pairs of two
kinds (`python -m tests.matrix` shows the cells one by one)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from itertools import islice

import pytest

from swapping.ingredients import Kitchen
from swapping.plan import Cell, alone, pairs

Try = Callable[[Iterable[Cell]], None]
#: Cells of the plain tests, and of the parts of slow ones.
FEW, SOME, PARTS = 6, 24, 4
#: Parts of the extended tests, whose combinations are others in every run, the same in all processes of a run.
MANY = 12
SEED = int(
    os.environ.get(
        "CM3_MATRIX_SEED",
        random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(1, 10**6),
    )
)


@pytest.mark.slow
def test_some_combinations(kitchen: Kitchen, try_cells: Try) -> None:
    try_cells(islice(pairs(kitchen), FEW))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_each_component_alone(kitchen: Kitchen, try_cells: Try, part: int) -> None:
    try_cells(islice(alone(kitchen), part, None, PARTS))


@pytest.mark.extended
@pytest.mark.parametrize("part", range(PARTS))
def test_more_combinations(kitchen: Kitchen, try_cells: Try, part: int) -> None:
    try_cells(islice(pairs(kitchen, seed=part + 1), SOME))


@pytest.mark.extended
@pytest.mark.parametrize("part", range(MANY))
def test_all_pairs(kitchen: Kitchen, try_cells: Try, part: int) -> None:
    print(f"repeat with CM3_MATRIX_SEED={SEED}")
    try_cells(islice(pairs(kitchen, seed=SEED), part, None, MANY))
