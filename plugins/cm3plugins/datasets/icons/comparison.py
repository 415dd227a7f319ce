"""Drawings as the small pictures by which they are compared: drawn once, what shows nothing marked, duplicates
left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cm3core.progress import make_bar
from cm3plugins.datasets.icons.duplicates import SAME, SIDE, close_pairs, neighbours, shrink
from cm3plugins.datasets.icons.read import MAX_TAGS, Drawing
from cm3plugins.datasets.vector.render import render_svg

DRAWN_SIZE = 64
"""Side, in pixels, at which drawings are compared."""
MIN_CONTRAST = 64
"""A picture whose darkest pixel is not this much darker than white shows nothing."""
NOT_RENDERED, EMPTY = 2.0, 3.0
"""What all pixels of a row of `small_pictures` are for such a drawing; those of a picture are in [0, 1]."""


def small_pictures(svgs: Sequence[str], title: str = "drawing") -> NDArray[np.float32]:
    """Draw everything once, small.

    Args:
        svgs: whole documents.
        title: of the progress bar.

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
    """Leave out what does not render, shows nothing, or can't be told apart from an earlier drawing, whose
    tags then get the name that was left out.

    Returns:
        positions of the drawings that stay, these drawings, the near-duplicates among them by position in
        that list, and counts by reason.
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
