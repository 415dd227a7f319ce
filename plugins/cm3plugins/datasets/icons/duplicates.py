"""Near-duplicates by pixels: the same drawing under two names, or in two styles that hardly differ.

Drawings are compared as 16 x 16 grey pictures, by the squared distance of their pixels in [0, 1]. On this
corpus, pairs up to `SAME` can't be told apart at 64 pixels, pairs up to `NEAR` differ by details.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

SAME = 0.1
NEAR = 0.6
SIDE = 16
NUM_NEIGHBOURS = 12
_NUM_DIRECTIONS = 48
"""Neighbours are looked for in the first directions of the principal axes, where distances are never longer
than in the whole space, so that no pair is missed but by more than `NUM_NEIGHBOURS` others."""


def shrink(grey_NHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average squares of pixels.

    Args:
        grey_NHW: uint8 [N, H, W], sides a multiple of 16.

    Returns:
        float32 [N, 256] in [0, 1].
    """
    count, side, _ = grey_NHW.shape
    step = side // SIDE
    squares = grey_NHW.reshape(count, SIDE, step, SIDE, step).astype(np.float32)
    small: NDArray[np.float32] = squares.mean((2, 4)).reshape(count, -1) / 255
    return small


def close_pairs(small_ND: NDArray[np.float32]) -> list[tuple[int, int, float]]:
    """Return all pairs (i, j, squared distance) with i < j and a distance up to `NEAR`, in order.

    Args:
        small_ND: what `shrink` returns.
    """
    import faiss

    if len(small_ND) < 2:
        return []
    centred_ND = small_ND - small_ND.mean(0)
    _, axes_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    projected_ND = np.ascontiguousarray(centred_ND @ axes_DD[:, -_NUM_DIRECTIONS:])
    index = faiss.IndexFlatL2(projected_ND.shape[1])
    index.add(projected_ND)
    _, neighbours_NK = index.search(projected_ND, min(NUM_NEIGHBOURS, len(small_ND)))
    first_M = np.repeat(np.arange(len(small_ND)), neighbours_NK.shape[1])
    second_M = neighbours_NK.ravel()
    pairs_M2 = np.unique(
        np.sort(np.stack([first_M, second_M], 1)[first_M != second_M], axis=1), axis=0
    )
    distance_M = np.concatenate(
        [
            np.square(small_ND[block[:, 0]] - small_ND[block[:, 1]]).sum(1)
            for block in np.array_split(pairs_M2, len(pairs_M2) // 10_000 + 1)
        ]
    )
    kept = distance_M <= NEAR
    return [
        (int(i), int(j), float(distance))
        for (i, j), distance in zip(pairs_M2[kept], distance_M[kept], strict=True)
    ]


def neighbours(pairs: list[tuple[int, int, float]]) -> dict[int, set[int]]:
    """Return drawing -> its near-duplicates, from `close_pairs`."""
    near: dict[int, set[int]] = defaultdict(set)
    for i, j, _ in pairs:
        near[i].add(j)
        near[j].add(i)
    return near
