"""Closed paths as codes: the kit's laws, pictures by hand, exact grids, limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cm3core.errors import RecipeError
from cm3core.picture_form import MISSING
from cm3icons.outlines import OutlinesConfig
from cm3icons.outlines.paths import outlines, simplified
from cm3icons.outlines.tokenizer import filled
from cm3kits.image_tokenizer import ImageTokenizerContract
from messages import tells

SMALL = OutlinesConfig(resolution=16, cells=8, tolerance=0, most_codes=64)


class TestOutlines(ImageTokenizerContract):
    config = OutlinesConfig(resolution=32, cells=16, most_codes=96)


def of_cells(dark: np.ndarray, side: int = 2) -> np.ndarray:
    """A picture of dark cells."""
    grey = np.where(dark, 0, 255).astype(np.uint8)
    return grey.repeat(side, 0).repeat(side, 1)[..., None].repeat(3, 2)


def test_a_square_with_a_hole_by_hand() -> None:
    dark = np.zeros((8, 8), bool)
    dark[1:5, 2:6] = True
    dark[2:3, 3:5] = False
    tokenizer = SMALL.build()
    [codes] = tokenizer.encode(of_cells(dark)[None])
    outer, inner = tokenizer.paths(codes)
    assert outer.tolist() == [[2, 1], [6, 1], [6, 5], [2, 5]]
    assert sorted(inner.tolist()) == [[3, 2], [3, 3], [5, 2], [5, 3]]
    # x, y = y + 9, ..., close = 18, end = 19
    assert codes[:9].tolist() == [2, 10, 6, 10, 6, 14, 2, 14, 18]
    assert codes[17:].tolist() == [18] + [19] * 46
    assert np.array_equal(tokenizer.decode(codes[None])[0], of_cells(dark))
    assert 'd="M2 1L6 1L6 5L2 5ZM' in tokenizer.svg(codes)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0.1, 0.9))
def test_without_tolerance_every_grid_comes_back(seed: int, size: int, share: float) -> None:
    dark_NGG = np.random.default_rng(seed).random((3, size, size)) < share
    traced = outlines(dark_NGG)
    for number, dark in enumerate(dark_NGG):
        paths = traced.of(number)
        assert np.array_equal(filled(paths, size, 2 * size) > 127, dark.repeat(2, 0).repeat(2, 1))
        assert all(len(path) >= 4 for path in paths)
        firsts = [path[0].tolist() for path in paths]
        assert firsts == sorted(min(path.tolist()) for path in paths)


def kept(line: np.ndarray, tolerance: float) -> list[list[int]]:
    """Douglas and Peucker's rule for one open line, without its last point."""
    x, y = (line[-1] - line[0]).tolist()
    away = [np.hypot(*(point - line[0])) for point in line]
    if x or y:
        away = [
            abs((px - line[0, 0]) * y - (py - line[0, 1]) * x) / np.hypot(x, y) for px, py in line
        ]
    place = int(np.argmax(away))
    if away[place] <= tolerance:
        return [line[0].tolist()]
    return kept(line[: place + 1], tolerance) + kept(line[place:], tolerance)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.sampled_from([0.5, 0.75, 1.0, 1.7]))
def test_paths_are_simplified_as_one_by_one(seed: int, share: float, tolerance: float) -> None:
    dark_NGG = np.random.default_rng(seed).random((2, 9, 9)) < share
    traced = outlines(dark_NGG)
    fewer = simplified(traced, tolerance)
    for number in range(2):
        expected = []
        for path in traced.of(number):
            closed = np.concatenate([path, path[:1]])
            far = int(np.argmax(((path - path[0]) ** 2).sum(1)))
            alone = kept(closed[: far + 1], tolerance) + kept(closed[far:], tolerance)
            expected.append(path.tolist() if len(path) < 4 else alone)
        assert [path.tolist() for path in fewer.of(number)] == [
            path for path in expected if len(path) >= 3
        ]


def test_cells_that_touch_at_a_corner_are_apart() -> None:
    assert len(outlines(np.eye(3, dtype=bool)[None]).of(0)) == 3


def test_a_disc_takes_few_points_and_stays_near() -> None:
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).ellipse((8, 8, 55, 55), fill=0)
    pixels = np.asarray(image)[..., None].repeat(3, 2)
    tokenizer = OutlinesConfig().build()
    [codes] = tokenizer.encode(pixels[None])
    [path] = tokenizer.paths(codes)
    assert 8 <= len(path) <= 24
    [drawn] = tokenizer.decode(codes[None])
    assert np.abs(drawn.astype(int) - pixels).mean() < 6
    assert len(simplified(outlines(np.ones((1, 4, 4), bool)), 1.0).of(0)[0]) == 4


def test_what_is_too_much_keeps_the_largest_paths() -> None:
    rng = np.random.default_rng(0)
    dark = rng.random((8, 8)) < 0.5
    dark[:3, :3] = True
    tokenizer = OutlinesConfig(resolution=16, cells=8, tolerance=0, most_codes=24).build()
    [codes] = tokenizer.encode(of_cells(dark)[None])
    assert tokenizer.form.strange_place(codes[None]) is None
    assert tokenizer.paths(codes), "the largest path has room"
    # with a coarser tolerance, or without the smallest paths, a picture among others is as alone
    others = np.stack([of_cells(rng.random((8, 8)) < share) for share in (0.1, 0.5, 0.9)])
    together = tokenizer.encode(np.concatenate([others, of_cells(dark)[None]]))
    assert np.array_equal(together[-1], codes)


def test_a_blank_picture_is_its_end() -> None:
    tokenizer = SMALL.build()
    [codes] = tokenizer.encode(np.full((1, 16, 16, 3), 255, np.uint8))
    assert set(codes.tolist()) == {19}
    assert (tokenizer.decode(codes[None]) == 255).all()


def test_a_resolution_that_cells_do_not_divide() -> None:
    with pytest.raises(RecipeError) as info:
        OutlinesConfig(resolution=30, cells=8).check()
    assert tells(info.value, "image_tokenizer.resolution: is 30, not a multiple of cells 8")


def test_positions_by_hand() -> None:
    """A path of one point and a half, then one whose beginning is missing; 9 lines, so y is y + 9."""
    positions = SMALL.build().form.positions
    assert positions is not None
    assert dict(positions.axes) == {"slot": 9, "x": 10, "y": 10}
    codes = np.array([2, 10, 6, 18, MISSING, 12, 4, 18, 19], np.int32)
    assert positions.of(codes).tolist() == [
        [1, 2, 9],
        [2, 2, 1],
        [3, 6, 1],
        [0, 9, 9],  # closed, though too early
        [8, 9, 9],
        [8, 9, 3],
        [8, 4, 3],
        [0, 9, 9],
        [7, 9, 9],
    ]
