"""The paired permutation test: by hand, by enumeration, against scipy, and its properties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3run.evaluation.paired import paired_test
from tests.fixtures.messages import tells
from tests.fixtures.profiles import examples

VALUES = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=1, max_size=10
).map(lambda pairs: (np.array(pairs, float) / 4).T)


def test_by_hand():
    """Differences 2, 3, 1: of the eight sign choices only +++ and --- have a mean of 2 or more."""
    result = paired_test([3, 5, 4], [1, 2, 3])
    assert result.difference == 2
    assert result.standard_error == pytest.approx(1 / math.sqrt(3))
    assert result.p_value == 2 / 8


def test_equal_values_differ_by_nothing():
    result = paired_test([1.5, 2.5], [1.5, 2.5])
    assert (result.difference, result.standard_error, result.p_value) == (0, 0, 1)


def test_a_single_case_has_no_standard_error():
    result = paired_test([2.0], [1.0])
    assert math.isnan(result.standard_error)
    assert result.p_value == 1


@given(VALUES)
@settings(max_examples=examples(25))
def test_equals_an_enumeration_of_all_signs(values):
    a, b = values
    differences = (a - b).tolist()
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    assert paired_test(a, b).p_value == sum(one >= observed for one in sums) / len(sums)


@given(VALUES, st.integers(0, 99))
@settings(max_examples=examples(25))
def test_swapped_values_have_the_opposite_difference_and_the_same_p(values, seed):
    a, b = values
    one = paired_test(a, b, num_permutations=50, seed=seed)
    other = paired_test(b, a, num_permutations=50, seed=seed)
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert 0 < one.p_value <= 1


def test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    b = rng.normal(size=40)
    a = b + rng.normal(0.3, 1, size=40)
    ours = paired_test(a, b)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=50_000,
        rng=np.random.default_rng(1),
    )
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.01)
    assert ours.standard_error == pytest.approx(stats.sem(a - b))


def test_finds_false_differences_as_often_as_it_says():
    """Of values without a difference, a p of at most 0.1 occurs in about a tenth."""
    rng = np.random.default_rng(7)
    found = [
        paired_test(*rng.normal(size=(2, 20)), num_permutations=200).p_value <= 0.1
        for _ in range(400)
    ]
    assert 0.05 < np.mean(found) < 0.15


def test_the_same_arguments_give_the_same_result():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100))
    assert paired_test(a, b) == paired_test(a, b)
    assert paired_test(a, b) != paired_test(a, b, seed=1)


@pytest.mark.parametrize(
    ("a", "b", "number", "words"),
    [
        ([1.0], [1.0, 2.0], 10, "paired test: compares values of shapes [1] and [2]"),
        ([], [], 10, "paired test: has no cases"),
        ([1.0, math.nan], [1.0, 2.0], 10, "paired test: case 1 ... nan"),
        ([1.0], [1.0], 0, "num_permutations: is 0"),
    ],
)
def test_refuses(a, b, number, words):
    with pytest.raises(DataError) as error:
        paired_test(a, b, num_permutations=number)
    assert tells(error.value, words)
