"""Curves through points: corners, straight lines and cubic Bezier curves, by least squares.

Source: P. J. Schneider, "An Algorithm for Automatically Fitting Digitized Curves", Graphics Gems (1990), 612-626.

Legend: N points of a line, [N, 2]; B control points of a curve, [4, 2].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Newton's steps that improve the places of points on a curve, before it is split.
_REFINEMENTS = 8
#: Share of a line's length by which a curve's handles are this long where least squares gives no use ones.
_HANDLE = 1 / 3
#: Angle, in radians, by which a straight line turns less.
_STRAIGHT = 0.12
#: Sine of the angle up to which lines do not cross where they meet.
_PARALLEL = 0.2
#: Cosine of the angle up to which a curve goes on in the direction of a line.
_SMOOTH = 0.9


def fitted(points_N2: Floats, tolerance: float, corner: float, reach: float) -> list[Floats]:
    """Control points of lines, [2, 2], and of curves, [4, 2], that follow a line; each begins where the one before ends.

    Args:
        points_N2: at least two, in order; of a closed line the last is the first.
        tolerance: how far a point may lie from the curve.
        corner: angle between the directions before and behind a point from which it is a corner, in radians.
        reach: length of line from which a direction is measured.
    """
    ends = [0, *_corners(points_N2, corner, reach), len(points_N2) - 1]
    curves = [
        curve
        for first, last in pairwise(ends)
        for curve in _smooth(points_N2[first : last + 1], tolerance, reach)
    ]
    for before, after in pairwise(curves):
        _meet(before, after, reach)
    if len(curves) > 1 and (points_N2[0] == points_N2[-1]).all():
        _meet(curves[-1], curves[0], reach)
    return curves


def _meet(before: Floats, after: Floats, reach: float) -> None:
    """Let a curve begin where the one before ends: lines where they cross, if that is near."""
    place = (before[-1] + after[0]) / 2
    if len(before) == len(after) == 2:
        steps = np.stack([before[1] - before[0], after[0] - after[1]], axis=1)
        if abs(np.linalg.det(steps)) > _PARALLEL * np.prod(np.linalg.norm(steps, axis=0)):
            crossing = before[0] + np.linalg.solve(steps, after[0] - before[0])[0] * steps[:, 0]
            if np.linalg.norm(crossing - place) < reach:
                place = crossing
    for curve, end, handle in ((before, -1, 2), (after, 0, 1)):
        if len(curve) == 4:
            curve[handle] += place - curve[end]
        curve[end] = place


def _corners(points: Floats, corner: float, reach: float) -> list[int]:
    """Where a line turns most, by at least so much, and not near its ends."""
    away = _lengths(points)
    turns = np.zeros(len(points))
    for place in range(1, len(points) - 1):
        before = points[place] - points[np.searchsorted(away, away[place] - reach)]
        behind = (
            points[min(len(points) - 1, np.searchsorted(away, away[place] + reach))] - points[place]
        )
        if min(away[place], away[-1] - away[place]) >= reach:
            turns[place] = _angle(before, behind)
    found: list[int] = []
    for place in np.argsort(-turns, kind="stable"):
        if turns[place] < corner:
            break
        if all(abs(away[place] - away[other]) > 2 * reach for other in found):
            found.append(int(place))
    return sorted(found)


def _angle(one: Floats, other: Floats) -> float:
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.arccos(np.clip(one @ other / norms, -1, 1))) if norms else 0.0


def _lengths(points: Floats) -> Floats:
    """Length of the line up to each point."""
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    lengths: Floats = np.concatenate([[0.0], np.cumsum(steps)])
    return lengths


def _smooth(points: Floats, tolerance: float, reach: float) -> Iterator[Floats]:
    """Yield the straight parts of a line without corners as lines, and what is between them as curves in their directions."""
    here, direction, start = 0, None, points[0]
    for first, last in [
        *_straight_parts(points, tolerance, reach),
        (len(points) - 1, len(points) - 1),
    ]:
        line = _least_line(points[first : last + 1]) if last > first else points[[-1, -1]]
        along = _unit(line[1] - line[0]) if last > first else None
        if first > here:
            part = np.concatenate([start[None], points[here + 1 : first], line[:1]])
            out = _tangent(part, reach) if direction is None else direction
            back = _tangent(part[::-1], reach) if along is None else -along
            yield from _curves(part, out, back, tolerance, reach)
        elif last > first and here:
            line[0] = start
        if last > first:
            yield line
        here, direction, start = last, along, line[1]


def _straight_parts(points: Floats, tolerance: float, reach: float) -> list[tuple[int, int]]:
    """First and last point of each part that is straight and longer than twice the reach; the whole line if it is straight."""
    if _bend(points) <= tolerance:
        return [(0, len(points) - 1)]
    away = _lengths(points)
    before = np.searchsorted(away, away - reach)
    behind = np.minimum(np.searchsorted(away, away + reach), len(points) - 1)
    turns = np.array(
        [
            _angle(points[place] - points[one], points[other] - points[place])
            for place, (one, other) in enumerate(zip(before, behind, strict=True))
        ]
    )
    inner = (away >= reach) & (away <= away[-1] - reach)
    if not inner.any():
        return []
    turns = turns[np.clip(np.arange(len(points)), *np.flatnonzero(inner)[[0, -1]])]
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], turns < _STRAIGHT, [False]]).astype(int))
    )
    parts = zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)
    return [
        (first, last)
        for first, last in parts
        if away[last] - away[first] >= 2 * reach and _bend(points[first : last + 1]) <= tolerance
    ]


def _bend(points: Floats) -> float:
    """How far a line lies from the straight one between its ends."""
    chord = points[-1] - points[0]
    length = float(np.linalg.norm(chord))
    step = points - points[0]
    if not length:
        return float(np.linalg.norm(step, axis=1).max())
    return float(np.abs(chord[0] * step[:, 1] - chord[1] * step[:, 0]).max()) / length


def _least_line(points: Floats) -> Floats:
    """The straight line nearest to points, from beside the first to beside the last."""
    middle = points.mean(0)
    direction = np.linalg.svd(points - middle, full_matrices=False)[2][0]
    line: Floats = middle + ((points[[0, -1]] - middle) @ direction)[:, None] * direction
    return line


def _unit(step: Floats) -> Floats:
    unit: Floats = step / (np.linalg.norm(step) or 1.0)
    return unit


def _tangent(points: Floats, reach: float) -> Floats:
    """Direction in which a line leaves its first point, of length 1."""
    away = _lengths(points)
    last = max(1, min(len(points) - 1, int(np.searchsorted(away, reach))))
    return _unit(points[last] - points[0])


def _curves(
    points: Floats, first: Floats, last: Floats, tolerance: float, reach: float
) -> Iterator[Floats]:
    """Yield curves with these directions at their ends; a line that one can't follow is split where that is farthest."""
    if len(points) == 2:
        handle = np.linalg.norm(points[1] - points[0]) * _HANDLE
        yield np.stack(
            [points[0], points[0] + first * handle, points[1] + last * handle, points[1]]
        )
        return
    along = _lengths(points)
    along = along / along[-1]
    for _ in range(_REFINEMENTS):
        curve = _least_squares(points, along, first, last)
        away = np.linalg.norm(_at(curve, along) - points, axis=1)
        worst = int(away.argmax())
        if away[worst] <= tolerance:
            yield curve
            return
        along = _nearer(curve, points, along)
    worst = min(max(1, worst), len(points) - 2)
    middle = _unit(_tangent(points[worst:], reach) - _tangent(points[worst::-1], reach))
    yield from _curves(points[: worst + 1], first, -middle, tolerance, reach)
    yield from _curves(points[worst:], middle, last, tolerance, reach)


def _at(curve: Floats, along: Floats) -> Floats:
    t = along[:, None]
    found: Floats = (
        (1 - t) ** 3 * curve[0]
        + 3 * t * (1 - t) ** 2 * curve[1]
        + 3 * t**2 * (1 - t) * curve[2]
        + t**3 * curve[3]
    )
    return found


def _least_squares(points: Floats, along: Floats, first: Floats, last: Floats) -> Floats:
    """The curve between the first and the last point with these directions, nearest to the points."""
    t = along[:, None]
    inner = 3 * t * (1 - t) ** 2 * first, 3 * t**2 * (1 - t) * last
    ends = (1 - t) ** 2 * (1 + 2 * t) * points[0] + t**2 * (3 - 2 * t) * points[-1]
    matrix = np.array([[float((one * other).sum()) for other in inner] for one in inner])
    wanted = np.array([float((one * (points - ends)).sum()) for one in inner])
    length = float(np.linalg.norm(points[-1] - points[0]))
    handles = np.full(2, length * _HANDLE)
    if abs(np.linalg.det(matrix)) > 1e-9:
        solved = np.linalg.solve(matrix, wanted)
        if (solved > 1e-3 * length).all() and (solved < 10 * _lengths(points)[-1]).all():
            handles = solved
    curve: Floats = np.stack(
        [points[0], points[0] + first * handles[0], points[-1] + last * handles[1], points[-1]]
    )
    return curve


def _nearer(curve: Floats, points: Floats, along: Floats) -> Floats:
    """Places on the curve nearer to the points, by a step of Newton's method."""
    t = along[:, None]
    once = np.diff(curve, axis=0) * 3
    twice = np.diff(once, axis=0) * 2
    away = _at(curve, along) - points
    slope = (1 - t) ** 2 * once[0] + 2 * t * (1 - t) * once[1] + t**2 * once[2]
    bend = (1 - t) * twice[0] + t * twice[1]
    above, below = (away * slope).sum(1), (slope**2).sum(1) + (away * bend).sum(1)
    step = np.divide(above, below, out=np.zeros_like(above), where=np.abs(below) > 1e-9)
    places: Floats = np.clip(along - step, 0, 1)
    return places


def tidied(curves: Sequence[Floats], step: float | None, level: float, near: float) -> list[Floats]:
    """The same line with nearly level and upright parts level and upright, on a grid, and with curves that go over into
    straight lines without a bend.

    Args:
        curves: as of `fitted`.
        step: the grid; None: none.
        level: tangent of the angle up to which a line counts as level or upright.
        near: how far a line may be from the grid to be moved there.
    """
    anchors = np.stack([curves[0][0], *(one[-1] for one in curves)])
    is_closed = bool((anchors[0] == anchors[-1]).all()) and len(curves) > 1
    moved = anchors.copy()
    for axis in (0, 1):
        for group in _level(curves, anchors, axis, level, is_closed):
            value = anchors[group, axis].mean()
            if step is not None and abs(nearest := round(value / step) * step - value) <= near:
                value += nearest
            moved[group, axis] = value
    whole = [
        one
        + np.linspace(moved[place] - anchors[place], moved[place + 1] - anchors[place + 1], 4)[
            [0, 0, 3, 3]
        ][: len(one)]
        if len(one) == 4
        else moved[place : place + 2]
        for place, one in enumerate(curves)
    ]
    for place in range(len(whole) - (not is_closed)):
        after = (place + 1) % len(whole)
        if len(whole[place]) == 2 and len(whole[after]) == 4:
            whole[after][1] = _continued(whole[place][0], whole[after][0], whole[after][1])
        elif len(whole[place]) == 4 and len(whole[after]) == 2:
            whole[place][2] = _continued(whole[after][1], whole[place][3], whole[place][2])
    return whole


def _level(
    curves: Sequence[Floats], anchors: Floats, axis: int, level: float, is_closed: bool
) -> list[list[int]]:
    """Groups of anchors that are to have the same coordinate, since level or upright lines join them."""
    groups: list[list[int]] = []
    for place, one in enumerate(curves):
        step = np.abs(one[-1] - one[0])
        if len(one) == 2 and step[axis] <= level * step[1 - axis]:
            if groups and groups[-1][-1] == place:
                groups[-1].append(place + 1)
            else:
                groups.append([place, place + 1])
    last = len(anchors) - 1
    if is_closed:
        ends = [group for group in groups if 0 in group or last in group]
        if ends:
            groups = [group for group in groups if group not in ends]
            groups.append(sorted({0, last, *(one for group in ends for one in group)}))
    return groups


def _continued(before: Floats, here: Floats, handle: Floats) -> Floats:
    """A curve's handle turned into the direction of the line before it, unless there is a corner."""
    line, own = here - before, handle - here
    norm, length = float(np.linalg.norm(line)), float(np.linalg.norm(own))
    if norm and length and line @ own > _SMOOTH * norm * length:
        turned: Floats = here + line / norm * length
        return turned
    return handle


def circle_of(points_N2: Floats, tolerance: float) -> tuple[Floats, float] | None:
    """Centre and radius of a closed line that is a circle, by least squares; None if it is none."""
    if not (points_N2[0] == points_N2[-1]).all() or len(points_N2) < 8:
        return None
    points = points_N2[:-1]
    rows = np.concatenate([2 * points, np.ones((len(points), 1))], axis=1)
    x, y, rest = np.linalg.lstsq(rows, (points**2).sum(1), rcond=None)[0]
    middle = np.array([x, y])
    radius = math.sqrt(max(0.0, rest + x * x + y * y))
    away = np.abs(np.linalg.norm(points - middle, axis=1) - radius)
    return (middle, radius) if away.max() <= tolerance else None
