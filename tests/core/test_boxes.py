"""Boxes as text and back, in the picture as a model sees it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3core.boxes import Boxes, boxes_in, text_of_boxes
from cm3core.errors import DataError
from cm3core.images import fit


def test_by_hand() -> None:
    """200 x 100: the square is columns 50 to 150."""
    boxes = Boxes((("bell", (50, 0, 100, 50)), ("key", (0, 0, 60, 100))), (100, 200))
    assert boxes.seen() == [("bell", (0, 0, 128, 128)), ("key", (0, 0, 26, 255))]
    assert boxes.text == "bell at (0, 0) -> (128, 128), key at (0, 0) -> (26, 255)"
    assert boxes_in(boxes.text) == boxes.seen()
    assert Boxes((("bell", (0, 0, 40, 50)),), (100, 200)).text == ""


@example(8, 14, (0.0, 0.0, 0.203125, 0.5))
@given(
    st.integers(8, 60),
    st.integers(8, 60),
    st.tuples(*[st.floats(0, 0.8)] * 2, *[st.floats(0.2, 1)] * 2),
)
def test_boxes_follow_crop_and_resize(height: int, width: int, place: tuple[float, ...]) -> None:
    """A white box in a picture is where the text says in what the model sees."""
    x0, y0 = int(place[0] * width), int(place[1] * height)
    x1, y1 = (
        min(x0 + 1 + int(place[2] * width), width),
        min(y0 + 1 + int(place[3] * height), height),
    )
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    seen = fit(picture, (256, 256))[..., 0] > 127
    found = Boxes((("box", (x0, y0, x1, y1)),), (height, width)).seen()
    if not seen.any():
        return
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    around = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    if (
        not found
    ):  # what is beside the visible square is blurred into its edge, by less than a pixel
        shown = around[2] - around[0], around[3] - around[1]
        assert min(shown) <= 256 / min(height, width)
        return
    [(_, box)] = found
    # resampling blurs an edge by up to half a pixel of the original
    assert np.abs(np.array(box) - around).max() <= 3 + 256 / min(height, width)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["bell", "arrow up", "no at 3"]), st.tuples(*[st.integers(0, 255)] * 4)
        ),
        max_size=4,
    )
)
def test_text_and_back(objects) -> None:
    assert boxes_in(text_of_boxes(objects)) == objects


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 5), (5, 0, 3, 5), (-1, 0, 3, 5), (0, 0, 11, 5), (0, 0, 5, 21)]
)
def test_boxes_outside_are_refused(box) -> None:
    with pytest.raises(DataError) as error:
        Boxes((("bell", box),), (20, 10))
    assert "is empty or outside the picture, which is 10 x 20" in str(error.value)


def test_a_label_is_needed() -> None:
    with pytest.raises(DataError, match="an object has no label"):
        Boxes(((" ", (0, 0, 1, 1)),), (2, 2))
