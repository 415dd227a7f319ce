"""Drawings of the memory in the form of a set: moved onto the canvas and scaled, by hand and as they are rendered, and which
version is taken.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3icons.complete.adapting import adaptation, adapted
from cm3icons.complete.canvas import on_canvas, reach, scaled, within
from cm3icons.complete.documents import Shown
from cm3icons.complete.hand import Hand
from cm3plugins.datasets.svg_folder.reading import SvgFile, parsed
from cm3plugins.svg import render_svg

OWN = Path(__file__).parents[3] / "tests" / "fixtures" / "own_icons"
PAINT = 'fill="none" stroke="#000" stroke-width="{}"'


def svg(body: str, box: str = "0 0 24 24") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def file_of(body: str, box: str = "0 0 24 24") -> SvgFile:
    return parsed(svg(body, box).encode())


def shown(body: str, text: str, small: float = 1.0) -> Shown:
    content = svg(body).encode()
    picture = render_svg(svg(body), 64)
    return Shown(f"x/{text}", text, (Text(text),), picture, None, content, small)


@pytest.fixture(scope="module")
def lines() -> Hand:
    """Of the own icons: square ends, 1.5 wide on 20 units."""
    return Hand.of([parsed(path.read_bytes()) for path in sorted(OWN.glob("*.svg"))])


@pytest.fixture(scope="module")
def areas() -> Hand:
    return Hand.of([file_of(f'<path d="M{x} 0h{24 - x}v24h-{24 - x}z"/>') for x in range(6)])


def test_shapes_on_the_canvas_by_hand() -> None:
    """From 12 units that begin at (-2, 2) to 24 that begin at 0: all is twice as large, and steps are relative."""
    path = '<path stroke="#000" d="M0 4L3 8H5v1c1 0 2 1 2 2A1 2 0 0 1 8 12zm1 1l1 0"/>'
    body = f'{path}<line x1="-2" y1="2" x2="0" y2="3"/><polygon points="0,4 1,4 1,5"/>'
    body += '<rect x="0" y="4" width="2" height="3" rx="9"/><circle cx="4" cy="8" r="1.5"/><circle r="0"/>'
    found = on_canvas(svg(body, "-2 2 12 12"))
    assert 'd="M4 4l6 8h4v2c2 0 4 2 4 4a2 4 0 0 1 2 2zM6 6l2 0"' in found
    assert 'd="M0 0l4 2"' in found
    assert 'd="M4 4l2 0l0 2z"' in found
    assert 'x="4.00000" y="4.00000" width="4.00000" height="6.00000" rx="2.00000"' in found
    assert found.count("<circle") == 1
    assert 'cx="12.00000" cy="12.00000" r="3.00000"' in found
    assert found.count('stroke-width="2.0000"') == 5


def test_a_larger_drawing_keeps_the_width_of_its_lines() -> None:
    small = on_canvas(svg(f'<path {PAINT.format(2)} d="M8 12h8"/>'))
    large = scaled(small, 2.0)
    assert 'd="M4 12h16"' in large
    assert 'stroke-width="2.0000"' in large


@given(
    start=st.integers(2, 10),
    width=st.floats(0.5, 3),
    least=st.floats(0.3, 0.7),
    more=st.floats(0.05, 0.3),
)
def test_drawings_reach_as_far_as_those_of_the_set(
    start: int, width: float, least: float, more: float
) -> None:
    drawing = on_canvas(
        svg(f'<path {PAINT.format(width)} d="M{start} {start}H{24 - start}V{24 - start}"/>')
    )
    found = reach(render_svg(within(drawing, least, least + more), 512))
    assert least - 0.02 <= found <= least + more + 0.02


def test_what_reaches_as_far_already_stays_as_it_is() -> None:
    drawing = on_canvas(svg(f'<path {PAINT.format(2)} d="M4 4h16v16H4z"/>'))
    assert within(drawing, 0.6, 0.9) == drawing
    blank = on_canvas(svg(""))
    assert within(blank, 0.6, 0.9) == blank


def test_lines_get_the_sets_width_and_ends(lines: Hand) -> None:
    """Others of the drawing stay as much wider; 1.5 of 20 units are 1.8 of 24."""
    body = f'<g {PAINT.format(3)}><path d="M4 4h16"/><path d="M4 8h16"/><path stroke-width="6" d="M4 20h16"/></g>'
    found = adapted(file_of(body), replace(lines, reach=(0.0, 1.0)))
    assert [found.count(f'stroke-width="{one}"') for one in ("1.8000", "3.6000")] == [2, 1]
    assert found.count('stroke-linecap="square" stroke-linejoin="miter"') == 3
    assert 'd="M4 4h16"' in found


def test_areas_along_lines_become_lines_and_lines_become_areas(lines: Hand, areas: Hand) -> None:
    pytest.importorskip("vtracer", reason="areas are traced with the extra svg")
    bar, line = (
        '<path d="M4 11h16v2H4z"/>',
        f'<path {PAINT.format(2)} d="M4 12h16"/>',
    )
    whole = (0.0, 1.0)
    one = adapted(file_of(bar), replace(lines, reach=whole))
    assert lines.paint_share(one) == 1
    other = adapted(file_of(line), replace(areas, reach=whole))
    assert areas.paint_share(other) == 1
    expected = render_svg(svg(line), 64)
    assert np.abs(render_svg(other, 64).astype(int) - expected).mean() < 3


def test_the_version_that_keeps_its_lines_in_the_sets_style(lines: Hand) -> None:
    """Not a filled one, nor one that must be traced, nor one with a mask; the nearest of the rest."""
    thin, wide = (f'<path {PAINT.format(one)} d="M4 12h16"/>' for one in (1, 2))
    masked = '<mask id="m"><path d="M0 0h4v4z"/></mask><path mask="url(#m)" d="M0 0h24v24z"/>'
    filled = shown(wide, "bar, filled, a")
    bar = shown('<path d="M4 11h16v2H4z"/>', "bar, outline, b")
    broken = replace(bar, original=svg(masked).encode())
    first, second = shown(wide, "bar, outline, c"), shown(thin, "bar, outline, d")
    every = [replace(bar, original=None), broken, filled, bar, first, second]
    found = adaptation(every, lines, "outline rounded", 64)
    assert found is not None
    assert found.document is first
    assert 0.5 < found.nearness <= 1
    assert 'stroke="#2b5d9c"' in found.svg
    traced = adaptation(every[:4], lines, "outline", 64)
    assert traced is not None
    assert traced.document is bar
    assert adaptation(every[:3], lines, "outline", 64) is None
    assert adaptation(every[:3], lines, "", 64) is not None


def test_what_is_small_in_its_own_set_stays_small(lines: Hand) -> None:
    dot = f'<path {PAINT.format(2)} d="M11 12h2"/>'
    small, usual = (reach(render_svg(adapted(file_of(dot), lines, one), 256)) for one in (0.3, 1.0))
    assert usual == pytest.approx(lines.reach[0], abs=0.02)
    assert small == pytest.approx(0.3 * lines.reach[0], abs=0.02)
