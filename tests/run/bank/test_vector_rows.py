"""Rows of several arrays as if they were one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3run.bank import VectorRows
from messages import tells


def test_rows_by_hand():
    rows = VectorRows(
        [
            np.array([[0, 1]], np.float32),
            np.zeros((0, 2), np.float32),
            np.array([[2, 3], [4, 5]], np.float32),
        ]
    )
    assert (rows.shape, len(rows)) == ((3, 2), 3)
    assert rows.take([2, 0, 2]).tolist() == [[4, 5], [0, 1], [4, 5]]
    assert [(start, block.tolist()) for start, block in rows.blocks(1)] == [
        (0, [[0, 1]]),
        (1, [[2, 3]]),
        (2, [[4, 5]]),
    ]
    assert rows.row(1).base is not None
    assert VectorRows([], 7).shape == (0, 7)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_rows_are_those_of_one_array(lengths, max_rows, data):
    whole = np.random.default_rng(0).standard_normal((sum(lengths), 3)).astype(np.float32)
    rows = VectorRows(np.split(whole, np.cumsum(lengths)[:-1]))
    indices = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)) if len(whole) else []
    assert np.array_equal(rows.take(indices), whole[np.array(indices, int)])
    blocks = list(rows.blocks(max_rows))
    assert [start for start, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[
        :-1
    ].tolist()
    assert np.array_equal(np.concatenate([*(block for _, block in blocks), whole[:0]]), whole)
    assert all(len(block) <= max_rows for _, block in blocks)
    assert all(np.array_equal(rows.row(i), whole[i]) for i in range(len(whole)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: rows.take([0, 3]), "row 3: there are 2"),
        (lambda rows: rows.row(-1), "row -1: there are 2"),
        (lambda rows: list(rows.blocks(0)), "max_rows: is 0, not 1 or more"),
        (lambda rows: VectorRows([]), "parts: are empty\n  next: give the dimension"),
        (
            lambda rows: VectorRows([np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32)]),
            "parts[1]: is float32 [2, 2 ... 3",
        ),
        (
            lambda rows: VectorRows.of(np.zeros((2, 3))),
            "parts[0]: is float64 [2, 3 ... 3",
        ),
    ],
)
def test_wrong_rows_are_refused(call, message):
    with pytest.raises((ValueError, IndexError)) as error:
        call(VectorRows.of(np.zeros((2, 3), np.float32)))
    assert tells(error.value, message)
