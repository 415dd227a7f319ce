"""How many documents each part of a mixture has in an epoch, and in which order they come."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

#: Steps in which shares are found: each halves the error.
_NUM_HALVINGS = 200
#: Of the largest share; smaller ones count as this.
_LEAST_SHARE = 1e-30
#: Separates the random streams of the parts' orders from all others.
_ORDER = 7


def counts_of(
    sizes: Sequence[int], shares: Sequence[float], clip: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Documents of each part in an epoch of sum(sizes), int64 [D].

    The ratios are clip(s * share / size) with the one s that fills the epoch.

    >>> counts_of([90, 10], [1.0, 1.0], (0.3, 3.0)).tolist()  # 50 of 10 would be five times
    [70, 30]
    """
    sizes_D, shares_D = np.asarray(sizes, np.float64), np.asarray(shares, np.float64)
    # a smaller share is held at the least ratio anyway, and the halvings would not reach its scale
    shares_D = np.maximum(shares_D / shares_D.max(), _LEAST_SHARE)
    total, wanted_D = int(sizes_D.sum()), shares_D / shares_D.sum() * sizes_D.sum() / sizes_D

    def filled(scale: float) -> npt.NDArray[np.float64]:
        return np.asarray(np.clip(scale * wanted_D, *clip) * sizes_D)

    low, high = 0.0, max(1.0, clip[1]) / float(wanted_D.min())
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if filled(middle).sum() < total else (low, middle)
    exact_D = filled(high)
    counts_D = np.floor(exact_D + 1e-9).astype(np.int64)
    missing = total - int(counts_D.sum())
    counts_D[np.argsort(counts_D - exact_D, kind="stable")[:missing]] += 1
    return counts_D


def part_order(counts_D: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The part of each document of an epoch, int64 [N]: among the first n, a part with c of the N documents
    has n c / N of them, to less than one (R. Tijdeman, "The chairman assignment problem", 1980).

    >>> part_order(np.array([4, 2])).tolist()
    [0, 1, 0, 0, 1, 0]
    """
    num_parts, total = len(counts_D), int(counts_D.sum())
    if num_parts == 1:
        return np.zeros(total, np.int64)
    slack = 1 / (2 * num_parts - 2)
    # a part's document k comes when it is owed that much of it, and before it is owed one less that much
    numbers = np.concatenate([np.arange(count) for count in counts_D.tolist()])
    parts = np.repeat(np.arange(num_parts), counts_D)
    every = total / counts_D[parts]
    owed = np.ceil((numbers + slack) * every - 1e-9).astype(np.int64)
    order = np.argsort(owed, kind="stable")
    coming = list(
        zip(owed[order], ((numbers + 1 - slack) * every)[order], parts[order], strict=True)
    )
    coming.reverse()
    waiting: list[tuple[float, int]] = []
    found = np.empty(total, np.int64)
    for place in range(total):
        while coming and coming[-1][0] <= place + 1:
            _, latest, part = coming.pop()
            heappush(waiting, (latest, part))
        found[place] = heappop(waiting)[1]
    return found


def drawn_records(
    size: int, start: int, stop: int, seeds: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """The records `start` to `stop` of an endless series of permutations of `size` records."""
    runs = []
    for number in range(start // size, (stop - 1) // size + 1):
        rng = np.random.default_rng(np.random.SeedSequence((*seeds, number), spawn_key=(_ORDER,)))
        first = number * size
        runs.append(rng.permutation(size)[max(start - first, 0) : stop - first])
    return np.concatenate(runs)
