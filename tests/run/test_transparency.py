"""White around a drawing becomes transparent; white inside stays; the picture looks the same on white."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cm3run.transparency import without_background


def on_white(layers: np.ndarray) -> np.ndarray:
    alpha = layers[:, :, 3:].astype(np.float64) / 255
    return layers[:, :, :3] * alpha + 255 * (1 - alpha)


def test_a_black_ring_with_a_soft_corner():
    pixels = np.full((7, 7, 3), 255, np.uint8)
    pixels[1:6, 1:6] = 0
    pixels[3, 3] = 255  # inside the ring
    pixels[1, 1] = 127  # half covered
    layers = without_background(pixels)
    assert layers[0].tolist() == [[255, 255, 255, 0]] * 7
    assert layers[1, 1].tolist() == [0, 0, 0, 128]
    assert layers[2, 2].tolist() == [0, 0, 0, 255]
    assert layers[3, 3].tolist() == [255, 255, 255, 255]


def test_a_red_edge_keeps_its_colour():
    pixels = np.full((5, 5, 3), 255, np.uint8)
    pixels[1:4, 2:4] = (200, 0, 0)
    pixels[1:4, 1] = (228, 128, 128)  # half red, half white
    layers = without_background(pixels)
    assert np.abs(layers[2, 1].astype(int) - [201, 0, 0, 127]).max() <= 2


@pytest.mark.parametrize("value", [0, 120, 255])
def test_pictures_of_one_colour(value):
    layers = without_background(np.full((4, 4, 3), value, np.uint8))
    assert (layers[:, :, 3] == (0 if value == 255 else 255)).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_on_white_nothing_changes(pixels):
    layers = without_background(pixels)
    assert layers.shape == (*pixels.shape[:2], 4)
    # outside, noise of white becomes white; elsewhere rounding of alpha
    outside = layers[:, :, 3] == 0
    difference = np.abs(on_white(layers) - pixels)
    assert (difference[outside] <= 20).all()
    assert (difference[~outside] <= 2).all()
