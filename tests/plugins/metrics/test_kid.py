"""The kernel inception distance: by hand, and against a sum over pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
