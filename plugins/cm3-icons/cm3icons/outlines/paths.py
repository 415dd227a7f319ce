"""Closed paths around the dark cells of many pictures at once: traced, and simplified.

Legend: N pictures, G cells per side, V points of all paths, P paths, E edges between dark and light cells, S lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cm3core.document import BoolArray, IntArray

_Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Paths:
    """Closed paths one after the other.

    Args:
        points_V2: int64 (x, y) on the grid.
        starts_P: int64 [P + 1]; path p has the points starts[p] up to starts[p + 1].
        picture_P: int64; the picture of each path, rising.
    """

    points_V2: _Ints
    starts_P: _Ints
    picture_P: _Ints

    @property
    def lengths_P(self) -> _Ints:
        """Points of each path."""
        return np.diff(self.starts_P)

    def of(self, picture: int) -> list[IntArray]:
        """The paths of a picture, int32 [P, 2] each."""
        first, last = np.searchsorted(self.picture_P, [picture, picture + 1])
        ends = zip(self.starts_P[first:last], self.starts_P[first + 1 : last + 1], strict=True)
        return [self.points_V2[start:stop].astype(np.int32) for start, stop in ends]

    def ordered(self, order_P: _Ints) -> Paths:
        """These paths, in this order."""
        lengths_P = self.lengths_P[order_P]
        starts_P = _starts(lengths_P)
        inner = np.arange(starts_P[-1]) - np.repeat(starts_P[:-1], lengths_P)
        points_V2 = self.points_V2[inner + np.repeat(self.starts_P[order_P], lengths_P)]
        return Paths(points_V2, starts_P, self.picture_P[order_P])

    def chosen(self, kept_P: BoolArray) -> Paths:
        """Only these paths."""
        return self.ordered(np.flatnonzero(kept_P))


def _starts(lengths: _Ints) -> _Ints:
    """Where runs of these lengths begin, and the end of the last one."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def outlines(dark_NGG: BoolArray) -> Paths:
    """Paths between dark and light cells, corners only, with the dark cells on the right. Dark cells that touch at a corner
    alone are apart.

    A path begins at its leftmost point, of several the uppermost one; the paths of a picture are ordered by it.
    """
    lines = dark_NGG.shape[1] + 1
    edges_E, next_E = _edges(dark_NGG)
    way_E, point_E = edges_E % 4, edges_E // 4
    corner_E = np.zeros(len(edges_E), bool)
    corner_E[next_E] = way_E[next_E] != way_E
    # past the edges that go straight on
    while len(straight := np.flatnonzero(~corner_E[next_E])):
        next_E = next_E.copy()
        next_E[straight] = next_E[next_E[straight]]
    number_E = np.cumsum(corner_E) - 1
    point_V, next_V = point_E[corner_E], number_E[next_E[corner_E]]
    x_V, y_V, picture_V = point_V % lines, point_V // lines % lines, point_V // lines**2
    first_V, left_V = _cycles(next_V, picture_V * lines**2 + x_V * lines + y_V)
    order = np.lexsort((-left_V, first_V))
    starts = np.flatnonzero(np.diff(first_V[order], prepend=-1))
    return Paths(
        np.stack([x_V, y_V], axis=1)[order],
        np.append(starts, len(order)),
        picture_V[order][starts],
    )


def _edges(dark_NGG: BoolArray) -> tuple[_Ints, _Ints]:
    """The edges between dark and light cells, rising, and the number of the edge that follows each.

    An edge is ((picture * lines + y) * lines + x) * 4 + way: where it begins, and 0 to the right, 1 down, 2 to the left,
    3 up.
    """
    cells = np.pad(dark_NGG, ((0, 0), (1, 1), (1, 1)))
    above_left, above = cells[:, :-1, :-1], cells[:, :-1, 1:]
    left, here = cells[:, 1:, :-1], cells[:, 1:, 1:]
    there = np.stack([here & ~above, left & ~here, above_left & ~left, above & ~above_left], axis=3)
    edges_E = np.flatnonzero(there)
    lines = here.shape[2]
    way_E = edges_E % 4
    end_E = edges_E // 4 + np.array([1, lines, -1, -lines])[way_E]
    # to the right first, so that cells which touch at a corner stay apart
    turns = [end_E * 4 + (way_E + turn) % 4 for turn in (1, 0, -1)]
    flat = there.ravel()
    following = np.select([flat[turn] for turn in turns[:2]], turns[:2], turns[2])
    return edges_E, np.searchsorted(edges_E, following)


def _cycles(next_V: _Ints, rank_V: _Ints) -> tuple[_Ints, _Ints]:
    """Of the cycles of a permutation, for each element the lowest rank in its cycle, and how many steps lead to the last
    element before that one. By doubling: each round looks twice as far."""
    lowest_V, far_V = rank_V, next_V
    while True:
        nearer = np.minimum(lowest_V, lowest_V[far_V])
        if np.array_equal(nearer, lowest_V):
            break
        lowest_V, far_V = nearer, far_V[far_V]
    last_V = rank_V[next_V] == lowest_V
    steps_V = (~last_V).astype(np.int64)
    far_V = np.where(last_V, np.arange(len(next_V)), next_V)
    while not last_V[far_V].all():
        steps_V, far_V = steps_V + steps_V[far_V], far_V[far_V]
    return lowest_V, steps_V


def simplified(paths: Paths, tolerance: float) -> Paths:
    """Paths with fewer points, none of the others further than `tolerance` from them (Douglas and Peucker 1973); those of
    fewer than three points are left out.

    A path keeps its first point, and the one furthest from it.
    """
    lengths_P = paths.lengths_P
    if tolerance <= 0 or not len(lengths_P):
        return paths.chosen(lengths_P >= 3)
    # each path with its first point behind it again
    starts_P, path_V = paths.starts_P[:-1], np.repeat(np.arange(len(lengths_P)), lengths_P)
    closed_P = starts_P + np.arange(len(lengths_P))
    points_C2 = np.insert(paths.points_V2, paths.starts_P[1:], paths.points_V2[starts_P], axis=0)
    square_V = ((paths.points_V2 - paths.points_V2[starts_P][path_V]) ** 2).sum(1)
    far_P = _first_largest(square_V, starts_P, lengths_P)[0] - starts_P + closed_P
    kept_C = np.repeat(lengths_P < 4, lengths_P + 1)
    kept_C[closed_P] = kept_C[far_P] = True
    long_P = lengths_P >= 4
    begin_S = np.concatenate([closed_P[long_P], far_P[long_P]])
    end_S = np.concatenate([far_P[long_P], (closed_P + lengths_P)[long_P]])
    while len(begin_S):
        between = end_S - begin_S > 1
        begin_S, end_S = begin_S[between], end_S[between]
        if not len(begin_S):
            break
        place_S, distance_S = _furthest(points_C2, begin_S, end_S)
        split = distance_S > tolerance
        begin_S, place_S, end_S = begin_S[split], place_S[split], end_S[split]
        kept_C[place_S] = True
        begin_S, end_S = np.concatenate([begin_S, place_S]), np.concatenate([place_S, end_S])
    kept_C[closed_P + lengths_P] = False
    number_P = np.add.reduceat(kept_C, closed_P, dtype=np.int64)
    fewer = Paths(points_C2[kept_C], _starts(number_P), paths.picture_P)
    return fewer.chosen(number_P >= 3)


def _furthest(points_C2: _Ints, begin_S: _Ints, end_S: _Ints) -> tuple[_Ints, NDArray[np.float64]]:
    """Of the points between the ends of each line, the furthest from it, and its distance."""
    number_S = end_S - begin_S - 1
    starts_S = _starts(number_S)[:-1]
    line = np.repeat(np.arange(len(number_S)), number_S)
    inner = np.arange(len(line)) - starts_S[line] + begin_S[line] + 1
    along = (points_C2[end_S] - points_C2[begin_S]).astype(float)
    from_first = (points_C2[inner] - points_C2[begin_S][line]).astype(float)
    length_S = np.hypot(along[:, 0], along[:, 1])
    cross = np.abs(from_first[:, 0] * along[line, 1] - from_first[:, 1] * along[line, 0])
    distance = np.where(
        length_S[line] == 0,
        np.hypot(from_first[:, 0], from_first[:, 1]),
        cross / np.where(length_S == 0, 1, length_S)[line],
    )
    place, largest_S = _first_largest(distance, starts_S, number_S)
    return inner[place], largest_S


def _first_largest(
    values: NDArray[np.generic], starts: _Ints, lengths: _Ints
) -> tuple[_Ints, NDArray[np.float64]]:
    """In each run of values, the place of the first that is largest, and that value; no run is empty."""
    largest = np.maximum.reduceat(values, starts)
    places = np.flatnonzero(values == np.repeat(largest, lengths))
    return places[np.searchsorted(places, starts)], largest


def doubled_areas(paths: Paths) -> _Ints:
    """Twice the area of each path, in cells."""
    after = np.arange(1, len(paths.points_V2) + 1)
    after[paths.starts_P[1:] - 1] = paths.starts_P[:-1]
    x, y = paths.points_V2.T
    cross = x * y[after] - y * x[after]
    return np.abs(np.add.reduceat(cross, paths.starts_P[:-1])) if len(cross) else cross
