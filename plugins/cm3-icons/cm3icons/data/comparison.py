"""Drawings as small pictures for comparison: drawn once, empty ones marked, duplicates
dropped.

Near-duplicates are the same drawing under two names, or in two styles that hardly differ. Drawings are compared as
16 x 16 grey pictures, by the squared distance of their pixels in [0, 1]. In this corpus, pairs up to `SAME` can't be
distinguished at 64 pixels; pairs up to `NEAR` differ in details.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cm3icons.data.read import MAX_TAGS, Drawing
from cm3plugins.svg import render_svg
from cm3run.progress import make_bar

SAME = 0.1
NEAR = 0.6
SIDE = 16
NUM_NEIGHBOURS = 12
_NUM_DIRECTIONS = 48
"""Neighbours are searched in the first principal axes, where distances never exceed those in the whole space, so
a pair is missed only if a drawing has more than `NUM_NEIGHBOURS` others."""


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
        small_ND: result of `shrink`.
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


DRAWN_SIZE = 64
"""Side, in pixels, at which drawings are compared."""
MIN_CONTRAST = 64
"""A picture is empty if its darkest pixel is not this much darker than white."""
NOT_RENDERED, EMPTY = 2.0, 3.0
"""Value of all pixels in a row of `small_pictures` for such drawings; other pictures are in [0, 1]."""


def small_pictures(svgs: Sequence[str], title: str = "drawing") -> NDArray[np.float32]:
    """Draw everything once at a small size.

    Args:
        svgs: whole documents.
        title: title of the progress bar.

    Returns:
        float32 [N, 256]: `shrink` of each, or `NOT_RENDERED` or `EMPTY`.
    """
    small_ND = np.full((len(svgs), SIDE * SIDE), NOT_RENDERED, np.float32)
    for row, svg in enumerate(make_bar(svgs, desc=title, unit="icon")):
        try:
            grey_HW = render_svg(svg, DRAWN_SIZE).min(2)
        except ValueError:
            continue
        empty = grey_HW.min() > 255 - MIN_CONTRAST
        small_ND[row] = EMPTY if empty else shrink(grey_HW[None])[0]
    return small_ND


def drop_duplicates(
    drawings: Sequence[Drawing], small_ND: NDArray[np.float32]
) -> tuple[list[int], list[Drawing], dict[int, set[int]], Counter[str]]:
    """Drop drawings that don't render, are empty, or can't be distinguished from an earlier one, which gets their
    name as a tag.

    Returns:
        indices of the remaining drawings, the drawings, their near-duplicates by index in that
        list, and counts by reason.
    """
    counts: Counter[str] = Counter()
    for reason, mark in (("not rendered", NOT_RENDERED), ("empty", EMPTY)):
        if number := int((small_ND[:, 0] == mark).sum()):
            counts[reason] = number
    shown = [int(index) for index in np.flatnonzero(small_ND[:, 0] <= 1)]
    kept = [drawings[index] for index in shown]
    pairs = close_pairs(small_ND[shown])
    names: dict[int, list[str]] = {}
    dropped: set[int] = set()
    for i, j, distance in pairs:
        if distance <= SAME and i not in dropped:
            dropped.add(j)
            if kept[i].name.words != kept[j].name.words:
                names.setdefault(i, []).append(" ".join(kept[j].name.words))
    counts["same as another"] = len(dropped)
    position = {old: new for new, old in enumerate(sorted(set(range(len(kept))) - dropped))}
    near = {
        position[i]: {position[j] for j in others if j in position}
        for i, others in neighbours(pairs).items()
        if i in position
    }
    stay = [
        replace(kept[i], tags=tuple(dict.fromkeys((*names.get(i, ()), *kept[i].tags)))[:MAX_TAGS])
        for i in position
    ]
    return [shown[i] for i in position], stay, near, counts
