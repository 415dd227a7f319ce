"""Drawings as codes of their commands: the kit's laws, drawings by hand, what is refused, bundled icons."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image
from cm3core.errors import DataError, RecipeError
from cm3core.picture_form import MISSING, Filling
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3icons.data.corpus import IconCorpus
from cm3icons.svg_codes import SvgConfig
from cm3icons.svg_codes.alphabet import alphabet
from cm3icons.svg_codes.reading import codes_of
from cm3icons.svg_codes.writing import svg_of
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.svg import render_svg
from cm3run.token_shards.writing import encoded_pictures
from messages import tells


class TestSvg(ImageTokenizerContract):
    config = SvgConfig(resolution=32, most_codes=160)


def document(body: str, box: str = "0 0 24 24") -> str:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def told(codes: list[int]) -> list[str]:
    """Names of codes, with their values where they have any."""
    named, kinds = alphabet().named(), alphabet().kinds
    return [
        name if kinds[name].number == 1 else f"{name} {value}"
        for name, value in (named[code] for code in codes)
    ]


def test_a_drawing_by_hand() -> None:
    """A filled triangle; then two lines of width 2 with round ends, in one paint; numbers count quarters."""
    svg = document(
        '<path d="M1 2h3l-1 1.5z"/><g fill="none" stroke="#000" stroke-width="2" '
        'stroke-linecap="round"><path d="M4 4V6"/><circle cx="12" cy="12.25" r="3"/></g>'
    )
    assert told(codes_of(svg)) == [
        *("paint 0", "M", "position 4", "position 8", "h", "step 12"),
        *("l", "step -4", "step 6", "z"),
        *("paint 2", "width 16", "ends 3", "M", "position 16", "position 16", "v", "step 8"),
        *("same", "circle", "position 48", "position 49", "length 12", "end"),
    ]
    assert svg_of(codes_of(svg)) == document(
        '<path fill="currentColor" d="M1 2h3l-1 1.5z"/>'
        '<path fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" '
        'stroke-linejoin="miter" d="M4 4v2"/>'
        '<circle fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" '
        'stroke-linejoin="miter" cx="12" cy="12.25" r="3"/>'
    )


def test_rounding_does_not_add_up() -> None:
    """Thirty steps of 0.1 end at 3, where the drawing ends, not at 30 times a rounded step."""
    codes = codes_of(document(f'<path d="M0 0{"l.1 .1" * 30}"/>'))
    steps = [int(one.split()[1]) for one in told(codes) if one.startswith("step")]
    assert sum(steps) == 2 * 12


def test_another_canvas_is_scaled_and_centred() -> None:
    """48 units become 24, and what is wider than it is high gets the same room above and below."""
    codes = codes_of(document('<path d="M24 12h24"/>', "0 0 48 24"))
    assert told(codes)[1:6] == ["M", "position 48", "position 48", "h", "step 48"]


@pytest.mark.parametrize("large", [0, 1])
@pytest.mark.parametrize("radius", [1.0, 2.05, 4.125, 5.1])
def test_half_a_circle_stays_one(radius: float, large: int) -> None:
    """Its radius, rounded by itself, could make it flat."""
    svg = document(f'<path d="M5 12a{radius} {radius} 0 {large} 1 {2 * radius} 0z"/>')
    drawn, again = (render_svg(one, 96).mean(2) < 128 for one in (svg, svg_of(codes_of(svg))))
    assert (drawn ^ again).sum() <= 0.12 * drawn.sum()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('<path transform="scale(2)" d="M0 0h2"/>', "transform"),
        ("<text>a</text>", "<text>"),
        ('<path fill="#e02020" d="M0 0h2v2z"/>', "the colour #e02020"),
        ('<path fill="url(#a)" d="M0 0h2v2z"/>', "the paint 'url(#a)'"),
        ('<path d="M0 0h200"/>', "a step of 800 (codes say -96 to 96)"),
        ('<path d="M0 0a3 2 30 0 1 2 2"/>', "a turned arc"),
        ('<path d="M0 0h"/>', "a path that breaks off in the command 'h'"),
        ('<path d="M0 0y3"/>', "a path with the command 'y'"),
        ('<path d="3 3"/>', "a path whose numbers belong to no command"),
        ('<path fill="#000" stroke="#fff" d="M0 0h2"/>', "a fill and a stroke of two tones"),
    ],
)
def test_what_codes_cannot_say_is_refused(body: str, why: str) -> None:
    with pytest.raises(
        DataError, match=re.escape(f"SVG: has {why}, which codes of paths can't say")
    ):
        codes_of(document(body))


def test_wrong_drawings() -> None:
    nothing = "SVG: shows nothing ... leave the drawing out"
    for svg, message in (
        ("<svg", None),
        (document(""), nothing),
        (document('<path fill="none" d="M0 0h2"/>'), nothing),
    ):
        with pytest.raises(DataError) as error:
            codes_of(svg)
        if message is None:
            assert str(error.value).startswith("SVG: is not well-formed XML (")
        else:
            assert tells(error.value, message)
    with pytest.raises(DataError) as error:
        SvgConfig(most_codes=16).build().encode_drawing(document(f'<path d="M0 0{"h1v1" * 9}"/>'))
    assert tells(
        error.value,
        "SVG: needs 41 codes, and a picture has at most 16 ... raise image_tokenizer.most_codes, or leave the drawing out",
    )


@given(st.integers(0, 2**32 - 1))
def test_whatever_keeps_the_rules_is_a_drawing_that_reads_the_same(seed: int) -> None:
    """What a model may draw can be read again; where nothing had to be rounded, as the same codes."""
    from cm3kits.image_tokenizer import random_codes

    table = alphabet()
    form = SvgConfig(most_codes=64).form
    [codes] = random_codes(form, table.size, 1, np.random.default_rng(seed))
    svg = svg_of(codes)
    render_svg(svg, 16)
    assert svg.endswith("</svg>")


def test_bundled_icons_come_back() -> None:
    """Every 400th grey icon: most can be written, keep the rules, and look as they did."""
    corpus, tokenizer = IconCorpus(), SvgConfig(most_codes=1024).build()
    psnr, left_out, number = [], 0, 0
    for index in range(0, len(corpus), 400):
        if corpus.entries[index].has_colour:
            continue
        number += 1
        try:
            codes = tokenizer.encode_drawing(corpus.svg(index))
        except DataError:
            left_out += 1
            continue
        assert tokenizer.form.strange_place(codes[None]) is None
        error = render_svg(corpus.svg(index), 64).astype(float) - tokenizer.decode(codes[None])[0]
        psnr.append(10 * np.log10(255**2 / max(1e-3, (error**2).mean())))
        written = tokenizer.encode_drawing(tokenizer.svg(codes))
        again = tokenizer.decode(written[None])[0].astype(float)
        assert np.abs(again - tokenizer.decode(codes[None])[0]).mean() < 2
    assert left_out <= 0.1 * number
    assert np.median(psnr) > 29


def test_a_picture_with_a_drawing_is_encoded_from_it() -> None:
    """And one without is traced; a drawing that can't be written is an error of its own."""
    tokenizer = SvgConfig().build()
    line = document('<path fill="none" stroke="#000" d="M2 12h20"/>')
    pixels = render_svg(line, 64)
    drawn = Image("drawn", lambda: pixels, drawing=lambda: line)
    plain = Image("plain", lambda: pixels)
    broken = Image("broken", lambda: pixels, drawing=lambda: document("<text/>"))
    results = [codes for _, codes in encoded_pictures([plain, drawn, broken], tokenizer)]
    assert "stroke" in tokenizer.svg(results[1])
    assert "stroke" not in tokenizer.svg(results[0])
    assert np.array_equal(results[1], tokenizer.encode_image(drawn))
    assert isinstance(results[2], DataError)


def test_tracing_keeps_areas() -> None:
    pixels = np.full((2, 64, 64, 3), 255, np.uint8)
    pixels[0, 10:30, 10:40] = 0
    tokenizer = SvgConfig().build()
    assert np.abs(tokenizer.decode(tokenizer.encode(pixels)).astype(int) - pixels).mean() < 1


def test_what_is_around_parts_by_hand() -> None:
    """Two subpaths of one element and a circle: the paint stays, so do both M, and the paint of the circle is written
    out, as what is drawn before it may have another."""
    tokenizer = SvgConfig().build()
    codes_c = tokenizer.encode_drawing(
        document('<path d="M1 2h3l-1 1.5zM4 4h2v3z"/><circle cx="3" cy="3" r="1"/>')
    )
    names = told(codes_c.tolist())
    circle = ["circle", "position 12", "position 12", "length 4", "end"]
    assert [[told(side.tolist()) for side in one] for one in tokenizer.around_parts(codes_c)] == [
        [
            ["paint 0", "M"],
            [*names[names.index("z") + 1 : names.index("same")], "paint 0", *circle],
        ],
        [names[: names.index("z") + 2], ["paint 0", *circle]],
        [names[: names.index("same") + 1], ["end"]],
    ]


@given(st.integers(0, 10**6), st.data())
def test_whatever_is_drawn_again_leaves_the_other_parts(seed: int, data: st.DataObject) -> None:
    """The other paths and shapes are written equally, with their paints; but for the rest of a path in which another
    element is begun."""
    tokenizer = SvgConfig(most_codes=200).build()
    form, rng = tokenizer.form, np.random.default_rng(seed)

    def filled(given_c: np.ndarray, *, free: bool) -> list[int]:
        filling, drawn = Filling(form, given_c, any_length=free), []
        for place in np.flatnonzero(given_c == MISSING).tolist():
            ids = np.flatnonzero(filling.allowed(place)[form.rules.class_of])
            if free and filling.may_close(place) and (not len(ids) or rng.random() < 0.3):
                break
            drawn.append(int(rng.choice(ids)))
            filling.put(place, drawn[-1])
        return drawn

    first = np.asarray(filled(np.full(60, MISSING, np.int32), free=False), np.int32)
    around = tokenizer.around_parts(form.padded(first[: form.length(first)]))
    number = data.draw(st.integers(0, len(around) - 1))
    before, behind = around[number]
    room = np.full(form.num_codes - len(before) - len(behind), MISSING, np.int32)
    new = filled(np.concatenate([before, room, behind]), free=True)
    whole = np.concatenate([before, np.asarray(new, np.int32), behind])
    assert form.strange_place(form.padded(whole)[None]) is None
    old, drawn = (elements(svg_of(codes)) for codes in (first[: form.length(first)], whole))
    assert drawn[:number] == old[:number]
    rest, same = drawn[len(drawn) - len(old) + number + 1 :], old[number + 1 :]
    assert [one[1] for one in rest] == [one[1] for one in same]
    kinds = alphabet().named()
    splits = {kinds[code][0] for code in new} & {"paint", "same"}
    in_path = kinds[int(behind[0])][0] == "M"
    if not (splits and in_path):  # else what follows of its path has the last paint
        assert rest == same


def elements(svg: str) -> list[tuple[str, str]]:
    """(attributes, geometry) of each subpath and shape."""
    found = []
    for name, attributes in re.findall(r"<(path|rect|circle|ellipse) ([^>]*)/>", svg):
        data = re.search(r' ?\bd="([^"]*)"', attributes)
        if data is None:
            found.append((name, attributes))
        else:
            paint = attributes.replace(data[0], "")
            found += [(paint, one) for one in re.findall("M[^M]*", data[1])]
    return found


def test_the_pen_by_hand() -> None:
    """The slot is the state of the rules; x and y count quarters from two units left of and above the canvas."""
    positions = SvgConfig().form.positions
    assert positions is not None
    states = alphabet().states
    none = positions.axes["x"] - 1
    codes = codes_of(document('<path d="M1 2h3l-1 1.5z"/><circle cx="3" cy="3" r="1"/>'))
    places = positions.of(np.asarray(codes, np.int32)).tolist()
    at, moved, drawn = [none, none], [8 + 4, 8 + 8], [8 + 16, 8 + 8]
    assert [[states[slot], x, y] for slot, x, y in places] == [
        ["fill", *at],
        *(["M 0", *at], ["M 1", *at], ["moved", *moved]),
        *(["h 0", *moved], ["drawn", *drawn]),
        *(["l 0", *drawn], ["l 1", *drawn], ["drawn", 8 + 12, 8 + 14]),
        *(["closed", *moved], ["same", *at]),
        *(["circle 0", *at], ["circle 1", *at], ["circle 2", *at], ["shape", *at], ["end", *at]),
    ]


def test_the_pen_is_found_again_behind_missing_codes() -> None:
    positions = SvgConfig().form.positions
    assert positions is not None
    sizes = list(positions.axes.values())
    codes = codes_of(document('<path d="M1 2h3l-1 1.5z"/><path d="M4 4h2"/>'))
    whole = positions.of(np.asarray(codes, np.int32))
    partly = positions.of(np.asarray([*codes[:2], *[MISSING] * 4, *codes[6:]], np.int32))
    assert partly[2].tolist() == [size - 1 for size in sizes]
    again = codes.index(alphabet().kinds["same"].first)
    assert np.array_equal(partly[again:], whole[again:])


def test_a_context_too_short_for_sequences() -> None:
    for number, told_of in ((0, "one picture"), (2, "3 pictures")):
        command = [f"retriever.num_retrieved={number}", "decoder.context_length=200"]
        with pytest.raises(RecipeError) as error:
            compose("icons-svg", command, registry=load_registry()).check()
        assert tells(
            error.value,
            f"decoder.context_length: is 200, too short for {told_of}, each a sequence of at most 256 codes (",
        )
