"""Boxes, segments and poses against independent computations, and under the crop of the picture."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.boxes import Boxes, boxes_in
from cm3core.errors import DataError
from cm3core.images import fit
from cm3plugins.datasets.coco import shapes

#: Masks and pycocotools 2.0.11's encodings of them: `mask.encode(np.asfortranarray(mask))["counts"]`.
ORACLE = json.loads((Path(__file__).parents[2] / "fixtures" / "coco_rle.json").read_text())


@pytest.mark.parametrize("case", ORACLE, ids=lambda case: case["name"])
def test_compressed_runs_are_those_of_pycocotools(case) -> None:
    rows = np.array([[letter == "1" for letter in row] for row in case["mask"]])
    runs = shapes.segment_of(
        "a", {"segmentation": {"counts": case["counts"], "size": list(rows.shape)}}, rows.shape
    )
    assert np.array_equal(shapes.mask_of(runs, rows.shape), rows)


@given(st.text(max_size=30))
def test_any_text_is_runs_or_an_error(text: str) -> None:
    lengths: list[int] = []
    with contextlib.suppress(DataError):
        lengths = shapes.decompressed("a", text)
    assert all(isinstance(length, int) for length in lengths)
    if any(not 48 <= ord(letter) < 112 for letter in text):
        assert lengths == []


sizes = st.integers(8, 200)


@settings(max_examples=200)
@given(height=sizes, width=sizes, side=st.sampled_from([64, 256]), data=st.data())
def test_coordinates_follow_crop_and_resize(height: int, width: int, side: int, data) -> None:
    """A box that is painted into the picture is, after `fit`, where its text says."""
    x0 = data.draw(st.integers(0, width - 4))
    y0 = data.draw(st.integers(0, height - 4))
    x1 = data.draw(st.integers(x0 + 4, width))
    y1 = data.draw(st.integers(y0 + 4, height))
    values = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
    box = shapes.box_of("a", values, (height, width))
    assert box == (x0, y0, x1, y1)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0:y1, x0:x1] = 255
    seen = fit(picture, (side, side))[:, :, 0] > 127
    text = Boxes((("thing", box),), (height, width)).text
    if not text:
        assert seen.sum() <= 4 * side  # at most a line at the edge
        return
    [(_, (left, top, right, bottom))] = boxes_in(text)
    # a pixel of what is stored, or of what is seen, whichever is larger; and rounding
    near = max(side / min(height, width), 1.0) * 1.5 + 1
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not len(rows):
        assert min(right - left, bottom - top) * side / 255 <= near
        return
    for stated, painted in (
        (left, columns[0]),
        (right, columns[-1] + 1),
        (top, rows[0]),
        (bottom, rows[-1] + 1),
    ):
        assert abs(stated * side / 255 - painted) <= near


@given(height=sizes, width=sizes, data=st.data())
def test_a_drawn_segment_is_cropped_as_its_picture(height: int, width: int, data) -> None:
    """Segments and pictures have one size, so `fit` takes the same part of both."""
    x0 = data.draw(st.integers(0, width - 4))
    y0 = data.draw(st.integers(0, height - 4))
    x1, y1 = data.draw(st.integers(x0 + 3, width - 1)), data.draw(st.integers(y0 + 3, height - 1))
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    segment = shapes.segment_of("a", {"segmentation": [polygon]}, (height, width))
    drawn = shapes.draw_segments([(1, segment)], (height, width))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[y0 : y1 + 1, x0 : x1 + 1] = shapes.colour(1)
    assert np.array_equal(fit(drawn, (64, 64)), fit(picture, (64, 64)))


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 6))
def test_runs_of_any_mask_give_the_mask(pixels: list[bool], height: int) -> None:
    width = len(pixels) // height
    mask = np.array(pixels[: height * width], bool).reshape(width, height).T
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    if not mask.size:
        return
    values = {"segmentation": {"counts": runs, "size": list(mask.shape)}}
    segment = shapes.segment_of("a", values, mask.shape)
    assert np.array_equal(shapes.mask_of(segment, mask.shape), mask)


def test_what_is_smaller_is_drawn_in_front() -> None:
    whole, corner = (0, 0, 9, 0, 9, 9, 0, 9), (0, 0, 2, 0, 2, 2, 0, 2)
    drawn = shapes.draw_segments([(1, (whole,)), (2, (corner,))], (10, 10))
    assert drawn[1, 1].tolist() == list(shapes.colour(2))
    assert drawn[5, 5].tolist() == list(shapes.colour(1))


def test_a_pose_by_hand() -> None:
    people = [((2.0, 2.0, True), (12.0, 2.0, True), (2.0, 12.0, False))]
    drawn = shapes.draw_poses(people, [(0, 1), (0, 2)], (16, 16))
    assert drawn[2, 7].tolist() == list(shapes.colour(0))
    assert drawn[2, 2].tolist() == list(shapes.colour(0, 0.5))
    assert not drawn[6:].any()
