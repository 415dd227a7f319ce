"""Nearness: a hand-computed case, a slow oracle, symmetry and range, place and size, and what it is of pictures
without colour, with it, and without a background."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from cm3run.nearness import NEARLY_A_COPY, Nearest, nearness

PICTURES = st.tuples(st.integers(1, 24), st.integers(1, 24)).flatmap(
    lambda size: arrays(np.uint8, (*size, 3))
)
DRAWINGS = ("disc", "ring", "cross", "tick", "disc with a cross", "disc with a tick")


def drawn(
    what: str,
    size: int = 64,
    place: tuple[int, int] = (8, 8),
    side: int = 48,
    ink: tuple[int, int, int] = (0, 0, 0),
    paper: tuple[int, int, int] = (255, 255, 255),
) -> np.ndarray:
    """A drawing in a box of that side, drawn large and made smaller, so that its edges are soft."""
    times = 8
    large = Image.new("RGB", (size * times, size * times), paper)
    draw = ImageDraw.Draw(large)
    x, y = (one * times for one in place)
    unit = side * times / 24

    def points(*at: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x + column * unit, y + row * unit) for column, row in at]

    if "disc" in what:
        draw.ellipse([*points((0, 0))[0], *points((24, 24))[0]], fill=ink)
    if what == "ring":
        box = [*points((0, 0))[0], *points((24, 24))[0]]
        draw.ellipse(box, outline=ink, width=round(2 * unit))
    colour, width = (paper if "disc" in what else ink), round(3 * unit)
    reach = (6, 18) if "disc" in what else (1, 23)
    if "cross" in what:
        low, high = reach
        draw.line(points((low, low), (high, high)), colour, width)
        draw.line(points((low, high), (high, low)), colour, width)
    if "tick" in what:
        low, high = reach
        draw.line(points((low, 12), (10, high), (high, low)), colour, width)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX))


def on_white(ink: np.ndarray) -> np.ndarray:
    """A picture of 48 x 48 with ink, 32 x 32, in its middle: the square that inks are compared in."""
    pixels = np.full((48, 48, 3), 255, np.uint8)
    pixels[8:40, 8:40] = 255 - ink[:, :, None]
    return pixels


def slow_nearness(first: np.ndarray, second: np.ndarray) -> float:
    """The definition, in loops, of inks 32 x 32 that need no resampling."""

    def shared(one, other):
        pairs = [(int(a), int(b)) for a, b in zip(np.ravel(one), np.ravel(other), strict=True)]
        return sum(map(min, pairs)) / sum(map(max, pairs))

    def contours(ink):
        padded = np.pad(ink.astype(float), 2)
        large = np.pad(padded, 4, mode="edge")
        size = padded.shape[0]
        more = np.array(
            [
                [
                    padded[row, column] - round(large[row : row + 9, column : column + 9].mean())
                    for column in range(size)
                ]
                for row in range(size)
            ]
        )
        return np.stack([np.maximum(more, 0), np.maximum(-more, 0)])

    return min(shared(first, second), shared(contours(first), contours(second)))


def test_half_as_much_ink_everywhere_is_half_as_near():
    black = np.full((32, 32), 255, np.uint8)
    grey = np.full((32, 32), 128, np.uint8)
    # 1024 pixels: 128 of 255 each; contours have the same share, but for rounding to whole numbers
    assert nearness(on_white(black), on_white(grey)) == pytest.approx(128 / 255, abs=0.005)


def test_it_is_what_the_definition_says():
    rng = np.random.default_rng(3)
    for _ in range(5):
        first, second = (
            np.where(rng.random((32, 32)) < 0.5, 0, rng.integers(26, 256, (32, 32)))
            for _ in range(2)
        )
        for one in (first, second):
            one[[0, 31]] = one[:, [0, 31]] = 255  # both inks have the whole square as their box
        first, second = first.astype(np.uint8), second.astype(np.uint8)
        expected = slow_nearness(first, second)
        assert nearness(on_white(first), on_white(second)) == pytest.approx(expected, abs=0.005)


@settings(max_examples=60)
@given(PICTURES, PICTURES)
def test_it_is_symmetric_between_0_and_1_and_1_for_equal_pictures(first, second):
    value = nearness(first, second)
    assert 0 <= value <= 1
    assert nearness(second, first) == value
    assert nearness(first, first) == 1
    assert nearness(first, first.copy()) == 1


@pytest.mark.parametrize("what", DRAWINGS)
@settings(max_examples=12)
@given(st.integers(40, 60), st.data())
def test_place_and_size_hardly_count(what, side, data):
    x, y = data.draw(st.integers(2, 62 - side)), data.draw(st.integers(2, 62 - side))
    assert nearness(drawn(what), drawn(what, place=(x, y), side=side)) > 0.85


@pytest.mark.parametrize("what", DRAWINGS)
def test_the_same_drawing_in_more_pixels_or_on_more_paper_is_as_near(what):
    assert nearness(drawn(what), drawn(what, 256, (32, 32), 192)) > 0.9
    wide = np.full((64, 200, 3), 255, np.uint8)
    wide[:, 100:164] = drawn(what)
    assert nearness(drawn(what), wide) == 1


def test_different_drawings_are_far_from_each_other():
    for place, one in enumerate(DRAWINGS):
        for other in DRAWINGS[place + 1 :]:
            assert nearness(drawn(one), drawn(other)) < NEARLY_A_COPY, (one, other)
    assert nearness(drawn("disc"), drawn("ring")) < 0.4
    assert nearness(drawn("disc with a cross"), drawn("disc with a tick")) < 0.7


def test_a_drawing_in_another_colour_or_in_white_on_black_is_a_copy():
    black = drawn("disc with a tick")
    white = drawn("disc with a tick", ink=(255, 255, 255), paper=(0, 0, 0))
    assert nearness(black, white) > 0.99
    assert nearness(black, drawn("disc with a tick", ink=(230, 0, 0))) > 0.99


def test_noise_of_decoders_is_no_ink():
    rng = np.random.default_rng(0)
    pixels = drawn("cross")
    noise = rng.integers(-20, 1, pixels.shape)
    noisy = np.clip(np.where(pixels == 255, pixels + noise, pixels), 0, 255).astype(np.uint8)
    assert nearness(pixels, noisy) > 0.9


def test_pictures_in_which_nothing_is_drawn_are_near_to_each_other_and_to_no_others():
    white, grey = np.full((8, 8, 3), 255, np.uint8), np.full((5, 9, 3), 90, np.uint8)
    assert nearness(white, grey) == 1
    assert nearness(white, drawn("disc")) == nearness(drawn("disc"), white) == 0


def test_photographs_are_near_to_their_copies_and_far_from_each_other():
    rng = np.random.default_rng(1)

    def photo() -> np.ndarray:
        small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        return np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC))

    one, other = photo(), photo()
    copy = np.clip(one + rng.normal(0, 4, one.shape), 0, 255).astype(np.uint8)
    assert nearness(one, copy) > 0.9
    assert nearness(one, other) < 0.5


def test_a_line_that_the_square_is_too_coarse_for():
    line = np.full((40, 4000, 3), 255, np.uint8)
    line[20, 5:3990] = 0
    assert nearness(line, line) == 1
    assert nearness(line, drawn("disc")) < 0.1


@given(st.lists(PICTURES, max_size=4), PICTURES)
def test_the_nearest_of_many_is_that_of_each(pictures: list[np.ndarray], one: np.ndarray) -> None:
    assert Nearest(pictures)(one) == max((nearness(one, other) for other in pictures), default=0.0)


def test_the_nearest_of_drawings() -> None:
    nearest = Nearest(map(drawn, DRAWINGS))
    moved = drawn("ring", place=(0, 4), side=40)
    assert nearest(moved) == max(nearness(moved, drawn(what)) for what in DRAWINGS)
    assert nearest(moved) == nearness(moved, drawn("ring")) > NEARLY_A_COPY
    blank = np.zeros((8, 8, 3), np.uint8)
    assert (nearest(blank), Nearest([blank])(blank), Nearest([blank])(moved)) == (0.0, 1.0, 0.0)
