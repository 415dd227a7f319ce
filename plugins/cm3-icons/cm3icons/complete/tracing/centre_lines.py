"""Centre lines of a drawing in lines of one width: thinned to a pixel, followed from end to end, and smoothed.

Legend: an enlarged picture [H, W]; N points of a line (x, y), [N, 2].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Pixel = tuple[int, int]

#: The eight neighbours of a pixel, clockwise from above.
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))

#: Pixels on each side over which a line is smoothed, since it goes from pixel to pixel.
_SMOOTHED = 4
#: Branches shorter than this, and lines nearer than this to a fork, are made by thinning; in widths of the line.
_BRANCH, _FORK = 0.75, 0.7
#: Cosine of the angle up to which a line goes straight on.
_STRAIGHT = 0.87


def thinned(covered: Bools) -> Bools:
    """Lines one pixel wide along the middle of what is covered.

    Source: Z. Guo, R. W. Hall, "Parallel thinning with two-subiteration algorithms", CACM 32 (1989), 359-373, algorithm A1.
    """
    pixels = np.pad(covered, 1)
    while True:
        before = pixels
        for odd in (False, True):
            p2, p3, p4, p5, p6, p7, p8, p9 = (
                np.roll(pixels, (-row, -column), (0, 1)) for row, column in _AROUND
            )
            pairs = (~p2 & (p3 | p4), ~p4 & (p5 | p6), ~p6 & (p7 | p8), ~p8 & (p9 | p2))
            connected = sum(pair.astype(np.int8) for pair in pairs)
            first = sum(pair.astype(np.int8) for pair in (p9 | p2, p3 | p4, p5 | p6, p7 | p8))
            second = sum(pair.astype(np.int8) for pair in (p2 | p3, p4 | p5, p6 | p7, p8 | p9))
            number = np.minimum(first, second)
            keeps = (p2 | p3 | ~p5) & p4 if odd else (p6 | p7 | ~p9) & p8
            pixels = pixels & ~((connected == 1) & (number >= 2) & (number <= 3) & ~keeps)
        if (pixels == before).all():
            return pixels[1:-1, 1:-1]


def followed(thin: Bools) -> list[list[Pixel]]:
    """The lines of a thinned picture as pixels in order, from each end or fork to the next, and closed ones, which end
    with their first pixel; single pixels are lines of one."""
    beside = _beside(thin)
    nodes = [pixel for pixel, others in beside.items() if len(others) != 2]
    steps: set[tuple[Pixel, Pixel]] = set()
    lines: list[list[Pixel]] = [[node] for node in nodes if not beside[node]]

    def follow(first: Pixel, second: Pixel) -> list[Pixel]:
        line = [first, second]
        steps.update(((first, second), (second, first)))
        while len(beside[line[-1]]) == 2 and line[-1] != first:
            one, other = beside[line[-1]]
            line.append(other if one == line[-2] else one)
            steps.update(((line[-2], line[-1]), (line[-1], line[-2])))
        return line

    for node in (*nodes, *beside):  # the rest are of closed lines
        for other in beside[node]:
            if (node, other) not in steps:
                lines.append(follow(node, other))
    return lines


def _beside(thin: Bools) -> dict[Pixel, list[Pixel]]:
    """The neighbours of each pixel of a line; diagonal ones only where no way round a corner leads there."""
    pixels = {(int(row), int(column)) for row, column in np.argwhere(thin)}
    return {
        (row, column): [
            (row + down, column + right)
            for down, right in _AROUND
            if (row + down, column + right) in pixels
            and not (
                down
                and right
                and ((row + down, column) in pixels or (row, column + right) in pixels)
            )
        ]
        for row, column in sorted(pixels)
    }


@dataclass(frozen=True, eq=False)
class _Line:
    """A line between two places.

    Args:
        points: [N, 2], as x, y; at least two.
        ends: the places at its ends, as pixels; the same for a closed line.
    """

    points: Floats
    ends: tuple[Pixel, Pixel]

    @property
    def length(self) -> float:
        return _length(self.points)

    def from_side(self, side: int) -> _Line:
        """The line, or turned round so that it begins at its other end."""
        return self if side == 0 else _Line(self.points[::-1], self.ends[::-1])

    def direction(self, side: int, near: float, far: float) -> tuple[Floats, Floats]:
        """A point at a distance from an end, and the direction from there to one farther away, of length 1."""
        points = self.from_side(side).points
        away = np.linalg.norm(points - points[0], axis=1)
        first, last = (int(np.argmax(away >= min(one, away.max()))) for one in (near, far))
        first = min(first, max(0, last - 1)) if last else 0
        step = points[max(last, 1)] - points[first]
        return points[first], step / max(1e-9, float(np.linalg.norm(step)))

    def trimmed(self, near: tuple[float, float]) -> Floats:
        """The points that are not nearer to the ends than so much; at least one."""
        away = [np.linalg.norm(self.points - self.points[end], axis=1) for end in (0, -1)]
        kept = (away[0] >= near[0]) & (away[1] >= near[1])
        return self.points[kept] if kept.any() else self.points[[len(self.points) // 2]]


#: An end of a line: its number, and 0 for the first or 1 for the last.
_End = tuple[int, int]


@dataclass(eq=False)
class _Forks:
    """How lines go on at their ends.

    Args:
        leads: from an end to that of another line, and by which points.
        places: where other ends are; without one, the line ends freely.
        near: for ends at forks, how much of a line there is out of place.
    """

    leads: dict[_End, tuple[_End, list[Floats]]]
    places: dict[_End, Floats]
    near: dict[_End, float]


def centre_lines(covered: Bools, beyond: float) -> tuple[list[Floats], float]:
    """The centre lines of what lines of about one width cover, and that width.

    Args:
        covered: [H, W].
        beyond: how far a line's cap reaches beyond the end of its centre line, as a share of its width.

    Returns:
        lines [N, 2], as x, y, in pixels from the upper left corner; a closed one ends where it begins, a dot has one point.
        A line goes straight through forks and crossings where another leads on in its direction.
    """
    found = followed(thinned(covered))
    dots = [np.array([[line[0][1] + 0.5, line[0][0] + 0.5]]) for line in found if len(line) == 1]
    lines = [_line(line) for line in found if len(line) > 1]
    width = _width(covered, lines)
    lines = _contracted(_without_branches(lines, width), width)
    joined: list[Floats] = []
    for points, free in _joined(lines, _forks(lines, width)):
        if len(points) > 1 and _length(points) >= width / 2:
            joined.append(_extended(points, free, covered, width, beyond))
        else:
            dots.append(points.mean(0, keepdims=True))
    return joined + dots, width


def _line(pixels: Sequence[Pixel]) -> _Line:
    """Pixels as a smooth line."""
    points = np.array([(column + 0.5, row + 0.5) for row, column in pixels])
    closed = pixels[0] == pixels[-1]
    reach = min(_SMOOTHED, (len(points) - 1) // 2)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(1.0, reach / 2)) ** 2)
    around = np.arange(-reach, len(points) + reach)
    if closed:
        padded = points[around % (len(points) - 1)]
    else:  # mirrored in its ends, which stay where they are
        inside = np.clip(around, 0, len(points) - 1)
        padded = 2 * points[inside] - points[np.clip(2 * inside - around, 0, len(points) - 1)]
        padded[reach : -reach or None] = points
    smooth = np.stack(
        [np.convolve(padded[:, axis], weights / weights.sum(), "valid") for axis in (0, 1)], axis=1
    )
    return _Line(smooth, (pixels[0], pixels[-1]))


def _length(points: Floats) -> float:
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())


def _width(covered: Bools, lines: Sequence[_Line]) -> float:
    """The width of lines that cover so much, with round ends."""
    length = sum(line.length for line in lines)
    degree = Counter(end for line in lines for end in line.ends)
    caps = sum(number == 1 for number in degree.values()) * math.pi / 8
    area, width = float(covered.sum()), 0.0
    for _ in range(8):
        width = area / max(1.0, length + caps * width)
    return width


def _without_branches(lines: Sequence[_Line], width: float) -> list[_Line]:
    """Without the short branches that thinning leaves at corners and caps."""
    degree = Counter(end for line in lines for end in line.ends)

    def is_branch(line: _Line) -> bool:
        few, many = sorted(degree[end] for end in line.ends)
        return few == 1 and many > 2 and line.length < _BRANCH * width

    return _merged([line for line in lines if not is_branch(line)])


def _meeting(lines: Sequence[_Line]) -> list[list[_End]]:
    """The ends that meet at each place."""
    at: dict[Pixel, list[_End]] = {}
    for number, line in enumerate(lines):
        for side in (0, 1):
            at.setdefault(line.ends[side], []).append((number, side))
    return list(at.values())


def _merged(lines: Sequence[_Line]) -> list[_Line]:
    """With one line for two that alone meet at a place."""
    lines = list(lines)
    while True:
        pair = next(
            (ends for ends in _meeting(lines) if len(ends) == 2 and ends[0][0] != ends[1][0]), None
        )
        if pair is None:
            return lines
        (one, its_side), (other, other_side) = pair
        first, second = lines[one].from_side(1 - its_side), lines[other].from_side(other_side)
        points = np.concatenate([first.points, second.points[1:]])
        lines = [line for number, line in enumerate(lines) if number not in (one, other)]
        lines.append(_Line(points, (first.ends[0], second.ends[1])))


def _contracted(lines: Sequence[_Line], width: float) -> list[_Line]:
    """With one fork for two near ones, as thinning makes of a crossing."""
    lines = list(lines)
    while True:
        degree = Counter(end for line in lines for end in line.ends)
        short = [
            line
            for line in lines
            if line.length < width and min(degree[end] for end in line.ends) > 2
        ]
        if not short:
            return _merged(lines)
        gone = min(short, key=lambda line: line.length)
        lines.remove(gone)
        if gone.ends[0] == gone.ends[1]:
            continue
        middle = (gone.points[0] + gone.points[-1]) / 2
        for number, line in enumerate(lines):
            points = line.points.copy()
            ends = tuple(gone.ends[0] if end == gone.ends[1] else end for end in line.ends)
            for side in (0, -1):
                if line.ends[side] in gone.ends:
                    points[side] = middle
            lines[number] = _Line(points, (ends[0], ends[1]))


def _forks(lines: Sequence[_Line], width: float) -> _Forks:
    """Decide which lines lead on to which."""
    forks = _Forks({}, {}, {})
    for ends in _meeting(lines):
        if len(ends) == 2:  # a closed line
            forks.leads |= {ends[0]: (ends[1], []), ends[1]: (ends[0], [])}
        elif len(ends) > 2:
            _fork(lines, ends, width, forks)
    return forks


def _fork(lines: Sequence[_Line], ends: Sequence[_End], width: float, forks: _Forks) -> None:
    number, side = ends[0]
    middle = lines[number].from_side(side).points[0]
    outward = {
        end: lines[end[0]].direction(end[1], _FORK * width, (_FORK + 1) * width) for end in ends
    }
    pairs = sorted(
        (
            (float(outward[one][1] @ outward[other][1]), one, other)
            for one, other in combinations(ends, 2)
        ),
        key=lambda pair: pair[0],
    )
    left = list(ends)
    place = None
    for cosine, one, other in pairs:
        if one not in left or other not in left:
            continue
        straight = cosine < -_STRAIGHT
        if not straight and place is not None:
            break
        apex = middle if straight else _apex(outward[one], outward[other], middle, width)
        forks.leads[one] = other, [] if straight else [apex]
        forks.leads[other] = one, [] if straight else [apex]
        left = [end for end in left if end not in (one, other)]
        if place is None:
            place = _nearest(outward[one][0], outward[other][0], middle) if straight else apex
    for end in left:
        forks.places[end] = middle if place is None else place
    forks.near |= dict.fromkeys(ends, _FORK * width)


def _apex(
    one: tuple[Floats, Floats], other: tuple[Floats, Floats], middle: Floats, width: float
) -> Floats:
    """Where two lines would meet, if that is near the fork."""
    matrix = np.stack([one[1], -other[1]], axis=1)
    if abs(np.linalg.det(matrix)) > 0.1:
        apex: Floats = one[0] + np.linalg.solve(matrix, other[0] - one[0])[0] * one[1]
        if np.linalg.norm(apex - middle) < width:
            return apex
    return middle


def _nearest(first: Floats, last: Floats, point: Floats) -> Floats:
    """The point between two that is nearest to a third."""
    step = last - first
    share = np.clip((point - first) @ step / max(1e-9, float(step @ step)), 0, 1)
    nearest: Floats = first + share * step
    return nearest


def _joined(lines: Sequence[_Line], forks: _Forks) -> Iterator[tuple[Floats, tuple[bool, bool]]]:
    """Yield whole lines, and whether their first and last end is free."""
    left = set(range(len(lines)))
    starts = [
        (number, side)
        for number in range(len(lines))
        for side in (0, 1)
        if (number, side) not in forks.leads
    ]
    for start in (*starts, *((number, 0) for number in range(len(lines)))):
        if start[0] not in left:
            continue
        parts: list[Floats] = []
        here: _End | None = start
        if start in forks.places:
            parts.append(forks.places[start][None])
        while here is not None and here[0] in left:
            number, side = here
            left.remove(number)
            near = (forks.near.get((number, side), 0.0), forks.near.get((number, 1 - side), 0.0))
            parts.append(lines[number].from_side(side).trimmed(near))
            end = (number, 1 - side)
            here = None
            if end in forks.leads:
                here, between = forks.leads[end]
                parts += [one[None] for one in between]
            elif end in forks.places:
                parts.append(forks.places[end][None])
        free = (
            start not in forks.places and start not in forks.leads,
            end not in forks.places and end not in forks.leads,
        )
        points = np.concatenate(parts)
        if start in forks.leads:
            points = np.concatenate([points, points[:1]])
        yield points, free


def _extended(
    points: Floats, free: tuple[bool, bool], covered: Bools, width: float, beyond: float
) -> Floats:
    """With free ends where their caps end with what is covered."""
    whole = _Line(points, ((0, 0), (1, 1)))
    for side in (0, 1):
        if not free[side]:
            continue
        start, inward = whole.direction(side, width / 4, 1.25 * width)
        reach = np.arange(0, 3 * width, 0.5)
        x, y = (start[:, None] - inward[:, None] * reach).astype(int)
        inside = (x >= 0) & (y >= 0) & (x < covered.shape[1]) & (y < covered.shape[0])
        on = inside & covered[np.where(inside, y, 0), np.where(inside, x, 0)]
        away = reach[int(np.argmin(on))] if not on.all() else reach[-1]
        tip = start - inward * (away - beyond * width)
        near = (width / 4, 0.0) if side == 0 else (0.0, width / 4)
        kept = _Line(whole.points, whole.ends).trimmed(near)
        whole = _Line(
            np.concatenate([tip[None], kept] if side == 0 else [kept, tip[None]]), whole.ends
        )
    return whole.points
