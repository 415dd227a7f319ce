"""Boxes -> cells and back, by hand and as a property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import GenerationError
from cm3run.model.crop import CentreCrop
from messages import tells


def test_cells_by_hand():
    """A picture 20 wide and 16 high.

    The model's 8 x 8 pixels cover x 2..18; a cell of the 4 x 4 grid is 4 x 4 input pixels.
    """
    crop = CentreCrop((16, 20), (8, 8))
    assert crop.extent == (2, 0, 18, 16)
    cells = crop.cells((6, 4, 11, 8), (4, 4)).reshape(4, 4)
    # x 6..10 touches the columns that begin at 6 and at 10
    assert np.argwhere(cells).tolist() == [[1, 1], [1, 2]]
    assert crop.cells((2, 0, 18, 16), (4, 4)).all()


def test_pasting_leaves_every_other_pixel():
    picture = np.arange(16 * 20 * 3, dtype=np.uint8).reshape(16, 20, 3)
    decoded = np.full((8, 8, 3), 7, np.uint8)
    crop = CentreCrop((16, 20), (8, 8))
    result = crop.pasted(picture, decoded, crop.mask_of([(6, 4, 11, 8)]))
    assert (result[4:8, 6:11] == 7).all()
    result[4:8, 6:11] = picture[4:8, 6:11]
    assert np.array_equal(result, picture)


def test_the_models_own_size_needs_no_scaling():
    decoded = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    crop = CentreCrop((8, 8), (8, 8))
    result = crop.pasted(np.zeros((8, 8, 3), np.uint8), decoded, crop.mask_of([(1, 2, 5, 8)]))
    assert np.array_equal(result[2:8, 1:5], decoded[2:8, 1:5])
    assert result.sum() == result[2:8, 1:5].sum()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 9), "box 5,5,5,9: is empty"),
        (
            (-1, 0, 4, 4),
            "box -1,0,4,4: reaches outside the ... of 20 x 16 ... within 0,0,20,16",
        ),
        (
            (0, 0, 4, 4),
            "box 0,0,4,4: reaches outside the ... 2,0,18,16",
        ),
    ],
)
def test_bad_boxes_are_named(box, message):
    with pytest.raises(GenerationError) as error:
        CentreCrop((16, 20), (8, 8)).cells(box, (4, 4))
    assert tells(error.value, message)


@given(height=st.integers(1, 90), width=st.integers(1, 90), data=st.data())
def test_every_pixel_of_the_box_lies_in_a_touched_cell(height, width, data):
    crop = CentreCrop((height, width), (16, 16))
    x0, y0, x1, y1 = crop.pixels
    left, top = data.draw(st.integers(x0, x1 - 1)), data.draw(st.integers(y0, y1 - 1))
    box = (left, top, data.draw(st.integers(left + 1, x1)), data.draw(st.integers(top + 1, y1)))
    cells = crop.cells(box, (4, 4)).reshape(4, 4)
    assert cells.any()
    ex0, ey0, ex1, ey1 = crop.extent
    for x, y in ((box[0], box[1]), (box[2] - 1, box[3] - 1)):
        column, row = (
            int(4 * (at + 0.5 - low) / (high - low))
            for at, low, high in ((x, ex0, ex1), (y, ey0, ey1))
        )
        assert cells[min(max(row, 0), 3), min(max(column, 0), 3)]


@given(st.data())
def test_a_mask_of_a_box_touches_what_the_box_touches(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(4, 40)), data.draw(st.integers(4, 40))
    crop, grid = (
        CentreCrop((height, width), (16, 16)),
        data.draw(st.sampled_from([(4, 4), (16, 16)])),
    )
    x0, y0, x1, y1 = crop.pixels
    left, right = sorted(
        data.draw(st.lists(st.integers(x0, x1), min_size=2, max_size=2, unique=True))
    )
    top, bottom = sorted(
        data.draw(st.lists(st.integers(y0, y1), min_size=2, max_size=2, unique=True))
    )
    box = (left, top, right, bottom)
    assert np.array_equal(crop.mask_cells(crop.mask_of([box]), grid), crop.cells(box, grid))


def test_a_brush_mask_by_hand() -> None:
    crop = CentreCrop((8, 8), (8, 8))
    mask = np.zeros((8, 8), np.bool_)
    # one pixel in cell (0, 0), one in cell (1, 2) of 4 x 4 cells of two pixels
    mask[0, 0] = mask[3, 4] = True
    assert np.flatnonzero(crop.mask_cells(mask, (4, 4))).tolist() == [0, 6]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.zeros((8, 8), np.bool_),
            "mask: is empty\n  next: mark what to inpaint (white, or true)",
        ),
        (
            np.ones((4, 8), np.bool_),
            "mask: is 8 x 4 ... is 12 x 8",
        ),
        (
            np.ones((8, 12), np.bool_),
            "mask: reaches outside the ... 2,0,10,8",
        ),
    ],
)
def test_masks_that_can_not_be(mask: np.ndarray, message: str) -> None:
    size = (8, 8) if not mask.any() else (8, 12)
    with pytest.raises(GenerationError) as error:
        CentreCrop(size, (8, 8)).mask_cells(mask, (4, 4))
    assert tells(error.value, message)
