"""Removing the white background of drawings, for `--transparent` and the server's `background`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cm3core.document import BoolArray, PixelArray

#: A pixel counts as white if no channel is further from 255. Image tokenizers decode white with
#: some noise.
TOLERANCE = 20


def without_background(pixels: PixelArray, tolerance: int = TOLERANCE) -> NDArray[np.uint8]:
    """Return the picture with the white around the drawing made transparent.

    White is removed only where it is connected to the picture's edge; white inside a drawing stays.
    Border pixels that mix a colour with white get the pure colour and become
    partly transparent, so that the picture is unchanged on white and looks right on any other background.

    Args:
        pixels: uint8 [height, width, 3].
        tolerance: largest distance of white from 255.

    Returns:
        uint8 [height, width, 4].
    """
    outside = _connected_to_edge(pixels.min(axis=2) >= 255 - tolerance)
    border = _grown(outside) & ~outside
    whiteness = pixels.min(axis=2).astype(np.float64)
    # the least white neighbour has the pure colour of a border pixel
    darkest = _least_around(whiteness)
    alpha = np.where(outside, 0.0, 1.0)
    mixed = (255 - whiteness) / np.maximum(255 - darkest, 1)
    alpha[border] = np.clip(mixed[border], 1 / 255, 1)
    shares = np.maximum(alpha, 1 / 255)[:, :, None]
    colours = np.clip(255 - (255 - pixels.astype(np.float64)) / shares, 0, 255)
    colours[outside] = 255
    layers = np.concatenate([colours, 255 * alpha[:, :, None]], axis=2)
    result: NDArray[np.uint8] = np.rint(layers).astype(np.uint8)
    return result


def _connected_to_edge(free: BoolArray) -> BoolArray:
    """The pixels connected to the edge by a path of free pixels (4-neighbourhood)."""
    reached = np.zeros_like(free)
    reached[[0, -1]] = free[[0, -1]]
    reached[:, [0, -1]] |= free[:, [0, -1]]
    while True:
        larger = _grown(reached) & free
        if (larger == reached).all():
            return reached
        reached = larger


def _grown(marked: BoolArray) -> BoolArray:
    """The marked pixels and their neighbours."""
    grown = marked.copy()
    grown[1:] |= marked[:-1]
    grown[:-1] |= marked[1:]
    grown[:, 1:] |= marked[:, :-1]
    grown[:, :-1] |= marked[:, 1:]
    return grown


def _least_around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The minimum over each pixel and its eight neighbours."""
    height, width = values.shape
    padded = np.pad(values, 1, mode="edge")
    shifted = [
        padded[top : top + height, left : left + width] for top in range(3) for left in range(3)
    ]
    least: NDArray[np.float64] = np.min(shifted, axis=0)
    return least
