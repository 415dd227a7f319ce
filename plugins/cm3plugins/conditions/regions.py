"""Condition `regions`: parts of like colours, without labels."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from cm3core.interfaces.condition import Condition
from cm3plugins.conditions.lines import SIDE, varied

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: Turns of the hue from one region to the next larger one: neighbours in size have unlike colours.
_GOLDEN = 0.6180339887498949


class Regions(Condition):
    """Mean shift, then neighbouring pixels of like colours are one region; the regions' colours say
    nothing about those of the picture.

    Args:
        radius, colours, smallest, vary: see `RegionsConfig`.
    """

    def __init__(self, radius: float, colours: float, smallest: float, vary: float) -> None:
        self.radius, self.colours, self.smallest, self.vary = radius, colours, smallest, vary

    @property
    def fingerprint(self) -> str:
        return f"regions 1 {self.radius} {self.colours} {self.smallest} {self.vary}"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        height, width = source.shape[:2]
        # the means are computed on a small picture: regions are coarse, and mean shift is slow
        scale = min(1.0, SIDE / min(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(np.ascontiguousarray(source), size, interpolation=cv2.INTER_AREA)
        radius = self.radius * varied(rng, self.vary) * min(size) / SIDE
        colours = self.colours * varied(rng, self.vary)
        means = cv2.pyrMeanShiftFiltering(small, max(1.0, radius), colours, maxLevel=0)
        labels = labelled(np.asarray(means, np.uint8), colours / 2)
        painted = coloured(labels, self.smallest)
        return np.asarray(
            cv2.resize(painted, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
        )


def labelled(pixels_HWC: PixelArray, near: float) -> npt.NDArray[np.int32]:
    """Number of the region of each pixel, from 1 on, int32 [H, W]: neighbours that differ by at most
    `near`, of 255, in each colour are of one region."""
    height, width = pixels_HWC.shape[:2]
    whole = np.ascontiguousarray(pixels_HWC)
    labels = np.zeros((height, width), np.int32)
    mask = np.zeros((height + 2, width + 2), np.uint8)
    number = 0
    for y, x in np.ndindex(height, width):
        if labels[y, x]:
            continue
        number += 1
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | (255 << 8)
        *_, (left, top, wide, high) = cv2.floodFill(
            whole, mask, (int(x), int(y)), 0, (near,) * 3, (near,) * 3, flags
        )
        part = labels[top : top + high, left : left + wide]
        part[(part == 0) & (mask[1 + top : 1 + top + high, 1 + left : 1 + left + wide] > 0)] = (
            number
        )
    return labels


def coloured(labels_HW: npt.NDArray[np.int32], smallest: float) -> PixelArray:
    """Regions in colours by the order of their sizes, the largest first; those of less than the share
    `smallest` of all pixels are black. uint8 [H, W, 3]."""
    counts = np.bincount(labels_HW.ravel())
    # of equal sizes, the one that comes first in the picture
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    palette = np.zeros((len(counts), 3), np.uint8)
    for place, label in enumerate(order):
        if counts[label] and counts[label] >= smallest * labels_HW.size:
            rgb = colorsys.hsv_to_rgb(place * _GOLDEN % 1.0, 0.65, 0.95)
            palette[label] = [round(255 * value) for value in rgb]
    return palette[labels_HW]
