"""Contact sheets, and the lines of their texts."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from cm3core.document import PixelArray
from cm3core.errors import DataError
from cm3run import sheets
from cm3run.sheets import grid
from messages import tells


def noise(height: int, width: int) -> PixelArray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_grid_shows_every_picture() -> None:
    red, blue = (
        np.full((64, 64, 3), (255, 0, 0), np.uint8),
        np.full((64, 64, 3), (0, 0, 255), np.uint8),
    )
    sheet = grid(
        [[red, blue], [None, red]],
        row_labels=["a red apple, noto style " * 3, "x"],
        column_labels=["real", "drawn"],
        captions=[
            ["one", "a caption that is longer than its picture is wide"],
            ["", "pneumonoultramicroscopic" * 3],
        ],
    )
    assert (sheet == (255, 0, 0)).all(-1).sum() == 2 * 128 * 128
    assert (sheet == (0, 0, 255)).all(-1).sum() == 128 * 128
    assert (sheet[:, :180] < 128).any()  # the row label is written


def test_a_plain_grid_has_no_room_for_words() -> None:
    assert grid([[noise(4, 4)]], scale=1, gap=2).shape == (8, 8, 3)
    with pytest.raises(DataError) as caught:
        grid([[]])
    assert tells(caught.value, "contact sheet: there are no pictures")


@given(words=st.lists(st.text("iMw.", max_size=60), max_size=6), width=st.integers(1, 90))
def test_lines_fit_and_lose_nothing(words: list[str], width: int) -> None:
    font = ImageFont.load_default()
    lines = sheets._wrap(" ".join(words), font, width)
    assert "".join(lines).replace(" ", "") == "".join(words)
    assert all(len(line) <= 1 or font.getlength(line) <= width for line in lines)


@given(word=st.text("iMw.", min_size=1, max_size=60), width=st.integers(1, 90))
def test_a_word_that_is_too_wide_is_cut_where_it_no_longer_fits(word: str, width: int) -> None:
    """One letter more on any line, and it would be too wide."""
    font = ImageFont.load_default()
    lines = sheets._wrap(word, font, width)
    for line, following in itertools.pairwise(lines):
        assert font.getlength(line + following[0]) > width


class CountingFont:
    """Every letter is one pixel wide; counts the letters that it has measured."""

    measured = 0

    def getlength(self, text: str) -> int:
        self.measured += len(text)
        return len(text)


def test_the_cost_of_a_long_word_is_in_its_length() -> None:
    """A label of 100,000 letters without a space: measured a few times, not once for each place where
    it could be cut."""
    font, letters = CountingFont(), 100_000
    lines = sheets._wrap("x" * letters, cast(Any, font), 80)
    assert {len(line) for line in lines} == {80}
    assert font.measured < 20 * letters
