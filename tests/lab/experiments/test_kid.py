"""The kernel inception distance: by hand, against a sum over pairs, and what the floor is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3lab.experiments.retrieval.drawing import kid
from cm3plugins.metrics.kid import mmd2


def test_by_hand() -> None:
    """Kernel (xy / 1 + 1) ** 3: within {0, 1} 1 (0 * 1), within {2, 2} 125, between 1, 1, 27,
    27."""
    assert (
        mmd2(np.array([[0.0], [1.0]]), np.array([[2.0], [2.0]]))
        == 1 + 125 - 2 * (1 + 1 + 27 + 27) / 4
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(2, 6))
def test_a_sum_over_pairs(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, 3)), rng.standard_normal((m, 3))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    def within(rows: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    kernel(rows[i], rows[j])
                    for i in range(len(rows))
                    for j in range(len(rows))
                    if i != j
                ]
            )
        )

    expected = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(expected)
    assert mmd2(y, x) == pytest.approx(mmd2(x, y))


def test_the_same_distribution_is_within_the_floor_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    real, same, other = (
        rng.standard_normal((400, 16)),
        rng.standard_normal((100, 16)),
        rng.standard_normal((100, 16)) + 0.5,
    )
    measured = kid(same, real)
    assert abs(measured.distance - measured.floor) < 4 * measured.floor_spread
    assert abs(measured.floor) < measured.floor_spread, (
        "unbiased: two halves of one set are at distance 0 on average"
    )
    assert kid(other, real).distance > measured.floor + 10 * measured.floor_spread
