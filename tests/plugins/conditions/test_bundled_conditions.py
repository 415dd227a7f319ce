"""The bundled conditions: by hand, against independent computations, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.boxes import text_of_boxes
from cm3core.errors import DataError, MissingPackageError
from cm3kits.condition import ConditionContract
from cm3plugins.conditions import (
    AsItIsConfig,
    BoxesConfig,
    CannyConfig,
    EdgesConfig,
    LineSegmentsConfig,
    RegionsConfig,
    XDoGConfig,
)
from cm3plugins.conditions.opencv import coloured, labelled
from cm3plugins.conditions.plain import colour_of, edges_of
from messages import tells


def square(side: int = 64, low: int = 16, high: int = 48) -> Any:
    """A black square on white."""
    picture = np.full((side, side, 3), 255, np.uint8)
    picture[low:high, low:high] = 0
    return picture


class TestCanny(ConditionContract):
    config = CannyConfig()


class TestEdges(ConditionContract):
    config = EdgesConfig()


class TestXDoG(ConditionContract):
    config = XDoGConfig()


class TestLineSegments(ConditionContract):
    config = LineSegmentsConfig()


class TestRegions(ConditionContract):
    config = RegionsConfig()
    max_examples = 5


class TestBoxes(ConditionContract):
    config = BoxesConfig(size=64)


class TestGiven(ConditionContract):
    config = AsItIsConfig()


def test_canny_finds_the_outline_of_a_square() -> None:
    drawn = CannyConfig().build().draw(square())
    assert set(np.unique(drawn)) == {0, 255}
    rows, columns = np.nonzero(drawn[..., 0])
    # a line of one pixel at the border, on either side of it
    assert {int(rows.min()), int(columns.min())} <= {15, 16}
    assert {int(rows.max()), int(columns.max())} <= {47, 48}
    assert not drawn[20:44, 20:44].any()
    assert 4 * 28 <= len(rows) <= 4 * 34


def test_canny_finds_the_edge_between_colours_that_are_as_light_as_each_other() -> None:
    """Red of 255 and green of 130 have the luminance 76: in grey there is nothing to find."""
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = (255, 0, 0), (0, 130, 0)
    rows, columns = np.nonzero(CannyConfig().build().draw(picture)[..., 0])
    assert set(columns.tolist()) <= {31, 32}
    assert len(set(rows.tolist())) >= 60


def test_edges_by_hand() -> None:
    picture = np.full((4, 4, 3), 255, np.uint8)
    picture[1:3, 1:3] = 0
    black = edges_of(picture)[..., 0] == 0
    assert black.astype(int).tolist() == [
        [0, 1, 1, 0],
        [1, 0, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 0],
    ]


def test_edges_of_a_large_picture_are_those_of_the_small_one() -> None:
    small = EdgesConfig().build().draw(square())
    assert (small[..., 0] == 0).sum() == 4 * 32 - 1  # two of the sides share a pixel
    large = EdgesConfig().build().draw(np.repeat(np.repeat(square(), 4, 0), 4, 1))
    assert (large == np.repeat(np.repeat(small, 4, 0), 4, 1)).all()


def test_a_low_threshold_finds_no_less() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.integers(0, 256, (64, 64, 3), np.uint8)
    few = CannyConfig(low=300, high=600).build().draw(noisy)
    many = CannyConfig(low=30, high=60).build().draw(noisy)
    assert 0 < few.sum() < many.sum()


def test_line_segments_are_the_straight_lines() -> None:
    """The sides of a square, on either side of its border; a dot has none."""
    drawn = LineSegmentsConfig().build().draw(square())
    assert set(np.unique(drawn)) == {0, 255}
    rows, columns = np.nonzero(drawn[..., 0])
    for values, others in ((rows, columns), (columns, rows)):
        on_sides = [int(one) for one in values if one <= 17 or one >= 46]
        assert {min(on_sides), max(on_sides)} <= {15, 16, 17, 46, 47, 48}
        assert int(others.min()) in (15, 16, 17)
    assert 4 * 26 <= len(rows) <= 4 * 34
    assert not drawn[20:44, 20:44].any()
    dot = square(64, 30, 34)
    assert not LineSegmentsConfig(shortest=30).build().draw(dot).any()


def test_lines_shorter_than_the_shortest_are_left_out() -> None:
    """In pixels of a picture of 256 a side: 32 of 64 are 128 of 256."""
    assert LineSegmentsConfig(shortest=110).build().draw(square()).any()
    assert not LineSegmentsConfig(shortest=140).build().draw(square()).any()


def test_a_circle_has_no_long_straight_line() -> None:
    y, x = np.mgrid[:256, :256]
    disc = np.where((y - 128) ** 2 + (x - 128) ** 2 < 30**2, 0, 255).astype(np.uint8)
    picture = np.repeat(disc[..., None], 3, axis=2)
    assert not LineSegmentsConfig(shortest=40).build().draw(picture).any()
    assert CannyConfig().build().draw(picture).any()


def test_seeds_vary_the_thresholds_of_training_alone() -> None:
    noisy = np.random.default_rng(0).integers(0, 100, (64, 64, 3), np.uint8)
    for config in (CannyConfig(), XDoGConfig(), LineSegmentsConfig(), RegionsConfig(colours=60)):
        condition = config.build()
        drawn = {condition.draw(noisy, np.random.default_rng(seed)).tobytes() for seed in range(8)}
        assert len(drawn) > 1
    still = CannyConfig(vary=0.0).build()
    drawn = {still.draw(noisy, np.random.default_rng(seed)).tobytes() for seed in range(8)}
    assert drawn == {still.draw(noisy).tobytes()}


def test_xdog_is_a_difference_of_gaussians() -> None:
    """Against scipy's blur: lines are where a place is darker than around it."""
    from scipy.ndimage import gaussian_filter

    picture = square(256, 100, 160)
    light = picture[..., 0].astype(np.float64) / 255
    darker = gaussian_filter(light, 1.6) - gaussian_filter(light, 1.0) - 0.01
    expected = 255 * np.tanh(100 * np.maximum(darker, 0))
    drawn = XDoGConfig().build().draw(picture)[..., 0].astype(float)
    inner = np.s_[20:-20, 20:-20]
    # opencv cuts a Gaussian off nearer its middle
    assert np.abs(drawn[inner] - expected[inner]).max() < 40
    assert (drawn[inner] > 128).sum() == pytest.approx((expected[inner] > 128).sum(), rel=0.05)
    assert drawn.max() > 200
    assert not drawn[120:140, 120:140].any()


def test_regions_by_hand() -> None:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[0, 1:3], pixels[1, 3] = 200, 200
    labels = labelled(pixels, 10.0)
    assert labels.tolist() == [[1, 2, 2, 3], [1, 1, 1, 4]]
    colours = coloured(labels, 0.2)  # a region needs two of the eight pixels
    assert colours[0, 0].tolist() == [242, 85, 85]  # the largest: hue 0
    assert colours[0, 1].tolist() == colours[0, 2].tolist() != [0, 0, 0]
    assert colours[0, 3].tolist() == colours[1, 3].tolist() == [0, 0, 0]


def test_regions_are_connected_components() -> None:
    """Of two colours, against scipy's labels."""
    from scipy.ndimage import label

    rng = np.random.default_rng(3)
    for _ in range(20):
        mask = rng.random((9, 13)) < 0.5
        pixels = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2)
        ours = labelled(pixels, 20.0)
        black, num = label(~mask)
        white, others = label(mask)
        assert ours.max() == num + others
        pairs = set(
            zip(ours.ravel().tolist(), (black + 1000 * white).ravel().tolist(), strict=True)
        )
        assert len(pairs) == num + others


@given(st.integers(0, 250), st.integers(0, 250), st.integers(1, 200), st.integers(1, 200))
def test_a_box_is_drawn_where_its_text_says(x0: int, y0: int, width: int, height: int) -> None:
    """At 255 pixels a side, a coordinate is a pixel's edge."""
    x1, y1 = min(x0 + width, 255), min(y0 + height, 255)
    drawn = BoxesConfig(size=255).build().draw(text_of_boxes([("bell", (x0, y0, x1, y1))]))
    expected = np.zeros((255, 255, 3), np.uint8)
    expected[y0:y1, x0:x1] = colour_of("bell")
    assert np.array_equal(drawn, expected)


def test_a_thin_box_at_an_edge_is_drawn() -> None:
    text = "bell at (254, 0) -> (255, 255), key at (0, 254) -> (100, 255)"
    drawn = BoxesConfig(size=64).build().draw(text)
    assert drawn[30, 63].tolist() == list(colour_of("bell"))
    assert drawn[63, 10].tolist() == list(colour_of("key"))


def test_smaller_boxes_are_in_front_and_labels_keep_their_colours() -> None:
    text = "bell at (10, 10) -> (20, 20), Wall at (0, 0) -> (255, 255)"
    drawn = BoxesConfig().build().draw(text)
    assert drawn[15, 15].tolist() == list(colour_of("bell"))
    assert drawn[100, 100].tolist() == list(colour_of("wall"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "bell",
            "condition: 'bell' has 0 ... only 0",
        ),
        (
            "bell at (1, 2) -> (3, 4), key at (0, 0) -> (9",
            "condition: 'bell at (1, 2) -> (3, 4), key at (0, 0) -> (9' has 2",
        ),
        (
            "bell at (1, 2) -> (1, 4)",
            "box of 'bell': (1, 2) -> ... 1 ... 4 ... within 0",
        ),
        (
            "bell at (1, 2) -> (300, 4)",
            "box of 'bell': (1, 2) -> ... 300 ... 4 ... within 0",
        ),
    ],
)
def test_texts_that_are_no_boxes(text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        BoxesConfig().build().draw(text)
    assert tells(error.value, message)


@pytest.mark.parametrize(
    "config", [CannyConfig(), XDoGConfig(), LineSegmentsConfig(), RegionsConfig()]
)
def test_without_opencv_the_extra_is_named(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3plugins.conditions.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as error:
        config.build()
    assert tells(error.value, "... the package 'opencv-python-headless'")
