"""Pictures as drawings of a set: thinning, centre lines, curves, and real icons of sets that draw lines and areas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cm3icons.complete.hand import Hand
from cm3icons.complete.sets import OwnSet, open_set
from cm3icons.complete.tracing import alike, traced
from cm3icons.complete.tracing.centre_lines import centre_lines, followed, thinned
from cm3icons.complete.tracing.curves import Floats, circle_of, fitted, tidied
from cm3icons.data import IconSourceConfig
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg
from drawing_models import OWN_ICONS
from profiles import examples

pytest.importorskip("vtracer", reason="pictures are traced with the extra svg")

WIDTH, CORNER = 20.0, math.radians(40)


def stroked(*lines: Sequence[tuple[float, float]], side: int = 256) -> np.ndarray:
    """What lines of `WIDTH` with round ends cover, drawn by another program than ours."""
    large = Image.new("L", (4 * side, 4 * side))
    draw = ImageDraw.Draw(large)
    for line in lines:
        points = [(4 * x, 4 * y) for x, y in line]
        draw.line(points, fill=255, width=round(4 * WIDTH), joint="curve")
        for x, y in points:
            reach = 2 * WIDTH
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    return np.asarray(large.resize((side, side), Image.Resampling.BOX)) > 127


def near(found: Floats, point: tuple[float, float], far: float = 2.5) -> bool:
    return bool(np.linalg.norm(found - np.array(point), axis=-1).min() <= far)


# --- thinning


def test_a_bar_is_thinned_to_its_middle_row() -> None:
    bar = np.zeros((7, 12), np.bool_)
    bar[2:5, 1:11] = True
    thin = thinned(bar)
    assert np.flatnonzero(thin.any(axis=1)).tolist() == [3]
    assert thin[3].sum() >= 7


def test_pixels_of_a_plus_are_followed_from_its_middle() -> None:
    plus = np.zeros((5, 5), np.bool_)
    plus[2, :] = plus[:, 2] = True
    lines = followed(plus)
    assert sorted(map(len, lines)) == [3, 3, 3, 3]
    assert all((2, 2) in (line[0], line[-1]) for line in lines)
    ring = np.ones((3, 3), np.bool_)
    ring[1, 1] = False
    [line] = followed(ring)
    assert line[0] == line[-1]
    assert len(set(line)) >= 4
    assert followed(np.eye(1, dtype=np.bool_)) == [[(0, 0)]]


# --- centre lines


def test_a_line_by_hand() -> None:
    [line], width = centre_lines(stroked([(40, 60), (200, 60)]), 0.5)
    assert width == pytest.approx(WIDTH, abs=1)
    assert near(line[[0, -1]], (40, 60))
    assert near(line[[0, -1]], (200, 60))
    assert np.abs(line[:, 1] - 60).max() < 1.5


def test_lines_cross_straight_and_meet_at_a_corner() -> None:
    crossed, _ = centre_lines(stroked([(40, 40), (200, 200)], [(40, 200), (200, 40)]), 0.5)
    assert len(crossed) == 2
    for line in crossed:
        assert abs(line[-1] - line[0]).min() > 150
        assert abs(np.abs(line - 120)[:, 0] - np.abs(line - 120)[:, 1]).max() < 2
    arrow = stroked([(128, 220), (128, 40)], [(60, 108), (128, 40), (196, 108)])
    lines, _ = centre_lines(arrow, 0.5)
    assert len(lines) == 2
    assert all(near(line, (128, 40), 5) for line in lines)


def test_a_ring_and_a_dot() -> None:
    angles = np.linspace(0, 2 * math.pi, 200)
    ring = [(128 + 70 * math.cos(one), 128 + 70 * math.sin(one)) for one in angles]
    lines, _ = centre_lines(stroked(ring, [(128, 128), (128.1, 128)]), 0.5)
    closed, dot = sorted(lines, key=len, reverse=True)
    found = circle_of(closed, 1.5)
    assert found is not None
    assert near(found[0], (128, 128), 1)
    assert found[1] == pytest.approx(70, abs=1)
    assert dot.shape == (1, 2)
    assert near(dot, (128, 128))
    assert circle_of(closed[:-5], 1.5) is None


ENDS = st.tuples(st.integers(40, 215), st.integers(40, 215))


@given(st.lists(st.tuples(ENDS, ENDS), min_size=1, max_size=4))
def test_centre_lines_stay_within_what_is_covered(lines: list[tuple[tuple[int, int], ...]]) -> None:
    covered = stroked(*lines)
    found, width = centre_lines(covered, 0.5)
    assert found
    assert width > 0
    for line in found:
        assert np.isfinite(line).all()
        x, y = np.clip(line.astype(int), 0, 255).T
        around = np.pad(covered, 3)
        assert all(
            around[row : row + 7, column : column + 7].any()
            for row, column in zip(y, x, strict=True)
        )


# --- curves


def test_a_corner_makes_two_lines_by_hand() -> None:
    points = np.array(
        [(float(x), 0.0) for x in range(31)] + [(30.0, float(y)) for y in range(1, 31)]
    )
    first, second = fitted(points, 0.5, CORNER, 6)
    assert first == pytest.approx(np.array([[0, 0], [30, 0]]))
    assert second == pytest.approx(np.array([[30, 0], [30, 30]]))


@given(
    st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), min_size=4, max_size=4),
    st.sampled_from([0.5, 1.5, 4.0]),
)
def test_curves_join_and_stay_near_the_points(
    controls: list[tuple[float, float]], tolerance: float
) -> None:
    control = np.array(controls)
    t = np.linspace(0, 1, 150)[:, None]
    points = (
        (1 - t) ** 3 * control[0]
        + 3 * t * (1 - t) ** 2 * control[1]
        + 3 * t**2 * (1 - t) * control[2]
        + t**3 * control[3]
    )
    curves = [*fitted(points, tolerance, CORNER, 6)]
    for one, other in pairwise(curves):
        assert one[-1] == pytest.approx(other[0])
    dense = np.concatenate([_sampled(curve) for curve in curves])
    away = np.linalg.norm(points[:, None] - dense[None], axis=2).min(1)
    assert away.max() <= 3 * tolerance + 1.5


def _sampled(curve: Floats) -> Floats:
    t = np.linspace(0, 1, 120)[:, None]
    if len(curve) == 2:
        straight: Floats = (1 - t) * curve[0] + t * curve[1]
        return straight
    one, two, three, four = curve
    bent: Floats = (
        (1 - t) ** 3 * one + 3 * t * (1 - t) ** 2 * two + 3 * t**2 * (1 - t) * three + t**3 * four
    )
    return bent


def test_nearly_level_lines_become_level_on_the_grid() -> None:
    line = np.array([[1.0, 2.1], [9.0, 2.2]])
    bent = np.array([[9.0, 2.2], [10.0, 2.2], [11.0, 3.0], [11.0, 4.0]])
    upright = np.array([[11.0, 4.0], [11.05, 9.0]])
    tidy = tidied([line, bent, upright], 1.0, 0.12, 0.3)
    assert tidy[0].tolist() == [[1.0, 2.0], [9.0, 2.0]]
    assert tidy[1][0].tolist() == [9.0, 2.0]
    assert tidy[1][1].tolist() == pytest.approx([10.0, 2.0])
    assert tidy[1][-1].tolist() == [11.0, 4.0]
    assert tidy[2].tolist() == [[11.0, 4.0], [11.0, 9.0]]
    free = tidied([line, bent, upright], None, 0.12, 0.3)
    assert free[0][:, 1].tolist() == pytest.approx([2.15, 2.15])


# --- whole pictures


@cache
def own_set(name: str) -> OwnSet:
    return open_set(name, IconSourceConfig(), None, None)


@pytest.mark.parametrize(("name", "least"), [("lucide", 0.9), ("iconoir", 0.9), ("bi", 0.93)])
def test_real_icons_are_traced_as_their_set_draws(name: str, least: float) -> None:
    """Rendered again, the ink is where it was; sets of lines get lines of their width, those of areas get areas."""
    own = own_set(name)
    places = np.linspace(0, len(own.source) - 1, examples(12)).astype(int)
    scores, strokes = [], 0
    for place in places:
        picture = next(one for one in own.source.document(int(place)) if hasattr(one, "load"))
        svg = traced(picture.load(), own.hand)
        file = parsed(own.hand.written(svg).encode())
        assert file.box == own.hand.box
        scores.append(alike(render_svg(file.svg, 64), picture.load()))
        strokes += own.hand.paint_share(svg) == 1
    assert np.median(scores) >= least
    assert strokes >= 0.7 * len(places)


def test_lines_of_another_width_get_the_sets_own() -> None:
    """The hand is measured from files; a picture in thicker lines is drawn in the set's."""
    hand = Hand.of([parsed(path.read_bytes()) for path in sorted(Path(OWN_ICONS).glob("*.svg"))])
    thick = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20"><path fill="none" stroke="#000" '
        'stroke-width="2.4" stroke-linecap="round" d="M4 10h12M10 4v12"/></svg>'
    )
    written = hand.written(traced(render_svg(thick, 64), hand))
    assert "2.4" not in written
    thin = thick.replace('"2.4"', '"1.5"')
    assert alike(render_svg(parsed(written.encode()).svg, 64), render_svg(thin, 64)) > 0.9


def test_a_grey_area_stays_one_only_in_a_set_with_greys() -> None:
    picture = render_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path fill="#999" d="M4 4h16v16H4z"/>'
        '<path d="M2 2h20v3H2z"/></svg>',
        64,
    )
    shaded, plain = (
        Hand(
            (0, 0, 24, 24), {"viewBox": "0 0 24 24"}, "", None, 2, (), (), frozenset({"fill"}), own
        )
        for own in (True, False)
    )
    assert "opacity" in shaded.written(traced(picture, shaded))
    assert "opacity" not in plain.written(traced(picture, plain))


def test_a_blank_picture_is_an_empty_drawing() -> None:
    hand = own_set("bi").hand
    svg = traced(np.full((64, 64, 3), 255, np.uint8), hand)
    assert hand.paint_share(svg) == 0
    assert "<path" not in hand.written(svg)
