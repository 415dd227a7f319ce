"""Paired comparison of two settings measured on the same cases, by a sign-flip permutation test.

If both settings are equally good, each case's difference is as likely to have the other sign. The p-value is the share of
all ways to choose the signs whose mean difference is at least as large. It assumes no distribution of the values (Fisher
1935, "The Design of Experiments", section 21).

Legend: N cases, D cases that differ, P sign choices at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cm3core.errors import DataError

#: Numbers computed at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PairedResult:
    """Result of a paired test.

    Args:
        difference: mean of a - b.
        standard_error: of `difference`, from the spread of the N differences; nan for a single case.
        p_value: two-sided, above 0 and at most 1.
    """

    difference: float
    standard_error: float
    p_value: float


def paired_test(
    a: npt.ArrayLike, b: npt.ArrayLike, *, num_permutations: int = 10_000, seed: int = 0
) -> PairedResult:
    """Test whether paired values differ in their mean.

    If there are at most `num_permutations` ways to choose the signs of the cases that differ, all of them are counted and
    the p-value is exact. Otherwise as many are drawn, and the observed signs count as one more (Phipson & Smyth 2010), so
    that the p-value is never 0. The same arguments give the same result.

    Args:
        a: values of N cases, N >= 1.
        b: values of the same cases in the same order.
        num_permutations: sign choices to count at most, 1 or more.
        seed: of the drawn signs.

    Raises:
        DataError: the numbers of values differ, there are none, or some are not finite.

    >>> paired_test([3, 5, 4], [1, 2, 3])
    PairedResult(difference=2.0, standard_error=0.5773502691896258, p_value=0.25)
    """
    difference_N = _differences(a, b)
    if num_permutations < 1:
        raise DataError("num_permutations", f"is {num_permutations}", "use 1 or more")
    number = len(difference_N)
    error = float(difference_N.std(ddof=1) / np.sqrt(number)) if number > 1 else float("nan")
    difference_D = difference_N[difference_N != 0]
    # sums of the same numbers in another order differ in their last bits
    least = abs(difference_D.sum()) - 1e-9 * np.abs(difference_D).sum()
    if len(difference_D) < 63 and 2 ** len(difference_D) <= num_permutations:
        counted, all_of_them = 0, 2 ** len(difference_D)
        signs = _all_signs(len(difference_D))
    else:
        counted, all_of_them = 1, num_permutations + 1
        signs = _drawn_signs(len(difference_D), num_permutations, seed)
    for signs_PD in signs:
        counted += int(np.count_nonzero(np.abs(signs_PD @ difference_D) >= least))
    return PairedResult(float(difference_N.mean()), error, counted / all_of_them)


def _differences(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """a - b, float64 [N]."""
    a_N, b_N = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a_N.ndim != 1 or a_N.shape != b_N.shape:
        raise DataError(
            "paired test",
            f"compares values of shapes {list(a_N.shape)} and {list(b_N.shape)}",
            "give two lists with one value per case, of the same cases",
        )
    if not len(a_N):
        raise DataError("paired test", "has no cases", "give at least one")
    for values_N in (a_N, b_N):
        if not np.isfinite(values_N).all():
            place = int(np.flatnonzero(~np.isfinite(values_N))[0])
            raise DataError(
                "paired test",
                f"case {place} has the value {values_N[place]}",
                "leave that case out",
            )
    return a_N - b_N


def _blocks(number: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(1, _BLOCK // max(1, width))
    return ((start, min(start + size, number)) for start in range(0, number, size))


def _all_signs(width: int) -> Iterator[npt.NDArray[np.float64]]:
    """All choices of signs, float64 [P, D] of -1 and 1."""
    for start, stop in _blocks(2**width, width):
        bits_PD = np.arange(start, stop)[:, None] >> np.arange(width) & 1
        yield np.where(bits_PD, 1.0, -1.0)


def _drawn_signs(width: int, number: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """Random choices of signs, float64 [P, D] of -1 and 1."""
    rng = np.random.default_rng(seed)
    for start, stop in _blocks(number, width):
        yield rng.choice([-1.0, 1.0], (stop - start, width))
