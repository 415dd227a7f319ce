"""Paired tests of two cells on the same cases, and the correction for several comparisons.

The test flips signs: if two cells are alike, each case's difference could as well have the other sign. The p-value is
the share of all sign patterns whose mean is at least as far from 0 as the observed one (two-sided). For values that are
right or wrong this is McNemar's exact test. It says whether *these* trained models differ on other cases of the same
kind; how much other seeds of training change is in the standard errors over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3run.evaluation.paired import paired_test

#: Patterns of signs: all if there are no more, else so many are drawn.
NUM_PATTERNS = 100_000
#: Below this, a corrected p-value is called a difference.
LEVEL = 0.05
#: Sizes of differences that differ by less, relatively, count as equal.
_TOLERANCE = 1e-9


def paired_p(differences: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The two-sided p-value of the paired sign-flip test of the mean difference; 1 if all are 0.

    >>> paired_p([1, 1, 1, 1, 1, 0, 0])  # five to none: 2 / 2**5
    0.0625
    """
    found = np.asarray(differences, np.float64)
    found = found[found != 0]  # their signs change nothing
    number = len(found)
    if number == 0:
        return 1.0
    sizes = np.abs(found)
    if np.allclose(sizes, sizes[0], rtol=_TOLERANCE, atol=0):
        return exact_p(int((found > 0).sum()), int((found < 0).sum()))
    return paired_test(found, np.zeros(number), num_permutations=NUM_PATTERNS).p_value


def exact_p(more: int, fewer: int) -> float:
    """McNemar's exact test: the two-sided p-value of `more` and `fewer` cases in which only one of two was right.

    >>> exact_p(9, 1), exact_p(0, 0)
    (0.021484375, 1.0)
    """
    number, least = more + fewer, min(more, fewer)
    if more == fewer:
        return 1.0
    tail: float = sum(math.comb(number, place) for place in range(least + 1)) / 2 ** (number - 1)
    return min(1.0, tail)


def exact_p_of_counts(hits: int, other_hits: int, num: int) -> tuple[float, float]:
    """The least and the greatest p-value of McNemar's exact test, if it is known how many of the same cases two settings
    had right, and not which ones.

    >>> exact_p_of_counts(1, 6, 100)  # all six others, or five others
    (0.0625, 0.125)
    """
    both = range(max(0, hits + other_hits - num), min(hits, other_hits) + 1)
    p_values = [exact_p(other_hits - one, hits - one) for one in both]
    return min(p_values), max(p_values)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for their number by Holm's method.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


@dataclass(frozen=True)
class Estimate:
    """A mean.

    Args:
        mean: of the values.
        error: its standard error; None: of a single value.
    """

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The mean of some values.

        >>> Estimate.of([1.0, 3.0])
        Estimate(mean=2.0, error=1.0)
        """
        numbers = np.asarray(values, np.float64)
        if len(numbers) == 1:
            return cls(float(numbers[0]), None)
        return cls(float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(len(numbers))))
