"""The hand of a set, measured and written: by hand, and on real sets that a drawing stays as the model wrote it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cm3core.errors import DataError
from cm3icons.complete.hand import Hand, read_drawing
from cm3icons.complete.paint import rules_of
from cm3icons.data.corpus import IconCorpus
from cm3icons.svg_codes.alphabet import CAPS, JOINS, alphabet
from cm3plugins.datasets.svg_folder import SvgFolderConfig
from cm3plugins.datasets.svg_folder.reading import parsed
from cm3plugins.svg import render_svg

OWN = Path(__file__).parents[3] / "tests" / "fixtures" / "own_icons"


def hand_of(*svgs: str) -> Hand:
    return Hand.of([parsed(one.encode()) for one in svgs])


def svg(body: str, attributes: str) -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'


@pytest.fixture(scope="module")
def own() -> Hand:
    source = SvgFolderConfig(path=str(OWN), split="all").build()
    return Hand.of([one.file for one in source.entries])


def test_the_hand_of_the_own_icons(own: Hand) -> None:
    assert own == Hand(
        box=(0, 0, 20, 20),
        root={
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": "0 0 20 20",
            "fill": "none",
            "stroke": "#2b5d9c",
            "stroke-width": "1.5",
            "stroke-linecap": "square",
        },
        paint="#2b5d9c",
        step=0.5,
        decimals=2,
        widths=(1.5,),
        ends=(("square", "miter"),),
        kinds=frozenset({"stroke"}),
        reach=(0.688, 0.771),
    )


def test_a_drawing_is_written_as_the_set_writes(own: Hand) -> None:
    """Of 24 units to 20: 4.75 is 3.96, less than half a step of the model's from the grid's 4, and goes there. A line of
    1.75 gets the set's width, and round ends its own. A grey is its paint at less opacity. Attributes of the root are
    not repeated."""
    drawing = svg(
        '<path fill="none" stroke="currentColor" stroke-width="1.75" stroke-linecap="round" stroke-linejoin="round" '
        'd="M4.75 12h1.25v-6.5c1 0 2 1 2 2a6 6 0 0 1 -6 6z"/>'
        '<circle fill="#666666" cx="12" cy="12" r="1.25"/>',
        'viewBox="0 0 24 24"',
    )
    assert own.written(drawing) == (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20" fill="none" stroke="#2b5d9c" '
        'stroke-width="1.5" stroke-linecap="square">\n'
        '  <path d="M4 10h1v-5.5c.83 .08 1.67 .92 1.67 1.75a5 5 0 0 1-5 5z" />\n'
        '  <circle cx="10" cy="10" r="1" fill="#2b5d9c" stroke="none" opacity=".6" />\n'
        "</svg>\n"
    )


def test_dots_can_be_seen_without_round_ends() -> None:
    """They become as long as their line is wide."""
    line = 'fill="none" stroke="#000" stroke-width="2" d="{}"'
    hand = hand_of(*[svg(f"<path {line.format('M4 4h16')}/>", 'viewBox="0 0 24 24"')] * 5)
    assert hand.ends == (("butt", "miter"),)
    dots = f'<path stroke-linecap="round" {line.format("M8 6h.01M12 12h6M4 6h.01")}/>'
    assert 'd="M7 6h2M12 12h6M3 6h2"' in hand.written(svg(dots, 'viewBox="0 0 24 24"'))


def test_how_much_is_painted_as_the_set_paints(own: Hand) -> None:
    line = 'fill="none" stroke="currentColor" stroke-linecap="{}" stroke-width="{}" d="M0 0h4"'
    parts = [
        f"<path {line.format('square', 1.75)}/>",  # 1.46 of the set's units
        f"<path {line.format('round', 1.75)}/>",
        f"<path {line.format('square', 3)}/>",
        '<path fill="currentColor" d="M0 0h4v4z"/>',
    ]
    assert own.paint_share(svg("".join(parts), "")) == 0.25
    assert own.paint_share(svg("", "")) == 0


def test_rules_of_the_paint(own: Hand) -> None:
    """Of 1.5 of 20 units, the nearest width is 14 eighths of 24; everything else is as before."""
    table = alphabet()
    rules = rules_of(own)
    never = rules.follows.shape[1] - 1
    allowed = {one for code, one in enumerate(table.named()) if rules.class_of[code] != never}
    for kind, values in {
        "paint": {2},
        "width": {14},
        "ends": {CAPS.index("square") * 3 + JOINS.index("miter")},
        "tone": set(),
        "opacity": set(),
        "M": {0},
    }.items():
        assert {value for name, value in allowed if name == kind} == values
    assert (rules.follows[:, never] < 0).all()
    steps = table.kinds["step"]
    assert sum(name == "step" for name, _ in allowed) == steps.number


def test_a_set_of_areas_on_another_canvas() -> None:
    """Black by default stays unsaid, and a view box that is no square and begins elsewhere comes back."""
    body = '<path d="M-8 16h16v32h-16z"/>'
    hand = hand_of(*[svg(body, 'viewBox="-16 0 32 64"')] * 3)
    assert (hand.paint, hand.widths, hand.kinds, hand.step) == ("", (), frozenset({"fill"}), 2.0)
    assert hand.written(read_drawing(parsed(svg(body, 'viewBox="-16 0 32 64"').encode()).svg)) == (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-16 0 32 64">\n'
        '  <path d="M-8 16h16v32h-16z" />\n'
        "</svg>\n"
    )


@pytest.mark.parametrize("name", ["lucide", "heroicons", "ph", "octicon"])
def test_what_is_written_looks_as_the_model_wrote_it(name: str) -> None:
    """Real sets: the file parses, is painted as before, and renders as the drawing on the model's canvas."""
    corpus = IconCorpus()
    every = [index for index, one in enumerate(corpus.entries) if one.set_name == name]
    files = [parsed(corpus.svg(index).encode()) for index in every[:: len(every) // 40]]
    hand = Hand.of(files)
    compared = 0
    for file in files[:20]:
        try:
            drawing = read_drawing(file.svg)
        except DataError:
            continue
        written = parsed(hand.written(drawing).encode())
        before, after = (render_svg(one, 96).astype(float) for one in (drawing, written.svg))
        assert written.box == hand.box
        assert np.abs(before - after).mean() < 3
        compared += 1
    assert compared > 10
