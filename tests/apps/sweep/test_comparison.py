"""Paired tests: by hand, and against scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cm3apps.sweep.comparison import (
    NUM_PATTERNS,
    Estimate,
    exact_p,
    exact_p_of_counts,
    holm,
    paired_p,
)


def test_a_small_example_by_hand() -> None:
    """1, 2 and -1 have the sum 2. Of the eight sums of +-1 +-2 +-1 two are 0 and the others 2 or 4 in size: 6 of 8."""
    sums = [a + 2 * b + c for a, b, c in itertools.product((1, -1), repeat=3)]
    assert paired_p([1, 2, -1]) == sum(abs(one) >= 2 for one in sums) / 8 == 0.75


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_the_enumeration_is_that_of_scipy(values: list[float]) -> None:
    differences = np.round(np.array(values), 3)
    expected = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    if not differences.any():
        expected = 1.0
    assert paired_p(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_drawn_patterns_are_near_to_scipy(shift: float) -> None:
    differences = np.random.default_rng(7).normal(shift, 1, 80)
    assert 2 ** len(differences) > NUM_PATTERNS
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=99_999, rng=1
    ).pvalue
    assert paired_p(differences) == pytest.approx(expected, abs=0.01)
    assert paired_p(differences) == paired_p(differences)  # drawn by a fixed seed


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 40), st.sampled_from([1, 100, 0.5]))
def test_right_or_wrong_is_mcnemars_exact_test(
    more: int, fewer: int, same: int, unit: float
) -> None:
    expected = stats.binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert exact_p(more, fewer) == pytest.approx(expected, rel=1e-9)
    assert paired_p([unit] * more + [-unit] * fewer + [0] * same) == exact_p(more, fewer)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_counts_bound_the_paired_test(cases: list[tuple[bool, bool]]) -> None:
    first, second = (sum(values) for values in zip(*cases, strict=True))
    least, most = exact_p_of_counts(first, second, len(cases))
    assert least <= paired_p([int(b) - int(a) for a, b in cases]) <= most


def test_11_of_100_is_not_decided_to_be_more_than_4_of_100() -> None:
    """Of the 4 all are among the 11, or none: 7 to 0 cases differ, 2 / 2^7, or 11 to 4, 2 x 1941 / 2^15."""
    assert exact_p_of_counts(4, 11, 100) == (2 / 2**7, 2 * 1941 / 2**15)


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1; never less than the one before; at most 1."""
    assert holm([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_estimates() -> None:
    assert Estimate.of([2.0]) == Estimate(2.0, None)
    assert Estimate.of([1.0, 2.0, 3.0]) == Estimate(2.0, 1 / math.sqrt(3))
