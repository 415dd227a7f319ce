"""Conditions drawn by opencv: `canny`, `xdog` and `lsd`, lines of a picture in white on black, as in
ControlNet; and `regions`, areas of similar colour, without labels.
"""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from cm3core.interfaces.condition import Condition

if TYPE_CHECKING:
    from cm3core.document import PixelArray

#: Ratio of the two blurs at which a difference of Gaussians best approximates the Laplacian of one (Marr and
#: Hildreth 1980).
_RATIO = 1.6
#: Side, in pixels, of the picture that lengths in the settings refer to.
SIDE = 256
#: Smallest side, after scaling, in which lines are detected: the detector needs a gradient.
_FEWEST = 4


def varied(rng: np.random.Generator | None, vary: float) -> float:
    """Return a random factor from 1 - vary to 1 + vary; 1 without `rng`."""
    return 1.0 if rng is None else float(rng.uniform(1 - vary, 1 + vary))


class CannyEdges(Condition):
    """Canny's edges (1986), found by opencv in colour: at each pixel in the channel with the largest gradient,
    as in ControlNet, so that two equally light colours still have an edge between them.

    Args:
        low, high: thresholds.
        vary: see `CannyConfig`.
    """

    def __init__(self, low: float, high: float, vary: float) -> None:
        self.low, self.high, self.vary = low, high, vary

    @property
    def fingerprint(self) -> str:
        return f"canny 2 {self.low} {self.high} {self.vary}"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        low, high = self.low * varied(rng, self.vary), self.high * varied(rng, self.vary)
        edges = cv2.Canny(np.ascontiguousarray(source), min(low, high), max(low, high))
        return np.repeat(np.asarray(edges, np.uint8)[..., None], 3, axis=2)


class SketchLines(Condition):
    """Lines by an extended difference of Gaussians: the dark sides of edges, with a soft threshold.

    Args:
        sigma, threshold, sharpness, vary: see `XDoGConfig`.
    """

    def __init__(self, sigma: float, threshold: float, sharpness: float, vary: float) -> None:
        self.sigma, self.threshold, self.sharpness, self.vary = sigma, threshold, sharpness, vary

    @property
    def fingerprint(self) -> str:
        return f"xdog 1 {self.sigma} {self.threshold} {self.sharpness} {self.vary}"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        sigma = self.sigma * varied(rng, self.vary) * min(source.shape[:2]) / SIDE
        threshold = self.threshold * varied(rng, self.vary)
        sigma = max(sigma, 0.3)  # smaller values do not blur
        grey = cv2.cvtColor(np.ascontiguousarray(source), cv2.COLOR_RGB2GRAY)
        light = grey.astype(np.float32) / 255
        narrow, wide = (cv2.GaussianBlur(light, (0, 0), scale * sigma) for scale in (1, _RATIO))
        # how much darker a pixel is than its surroundings
        darker = np.maximum(wide - narrow - threshold, 0)
        lines = np.tanh(self.sharpness * darker)
        pixels = np.round(255 * lines).astype(np.uint8)
        return np.repeat(pixels[..., None], 3, axis=2)


class LineSegments(Condition):
    """Straight lines, found by opencv's line segment detector, each one pixel wide.

    Args:
        shortest, scale, vary: see `LineSegmentsConfig`.
    """

    def __init__(self, shortest: float, scale: float, vary: float) -> None:
        self.shortest, self.scale, self.vary = shortest, scale, vary

    @property
    def fingerprint(self) -> str:
        return f"lsd 1 {self.shortest} {self.scale} {self.vary}"

    def _draw(self, source: PixelArray, rng: np.random.Generator | None) -> PixelArray:
        shortest = self.shortest * varied(rng, self.vary) * min(source.shape[:2]) / SIDE
        scale = self.scale * varied(rng, self.vary)
        drawn = np.zeros(source.shape, np.uint8)
        if min(source.shape[:2]) * scale < _FEWEST:
            return drawn
        grey = cv2.cvtColor(np.ascontiguousarray(source), cv2.COLOR_RGB2GRAY)
        found = cv2.createLineSegmentDetector(scale=scale).detect(grey)[0]
        for x0, y0, x1, y1 in [] if found is None else np.reshape(found, (-1, 4)).tolist():
            if math.hypot(x1 - x0, y1 - y0) >= shortest:
                start, end = (round(x0), round(y0)), (round(x1), round(y1))
                cv2.line(drawn, start, end, (255, 255, 255))
        return drawn


#: Step in hue from one region to the next by size, so that regions of similar size differ in colour.
_GOLDEN = 0.6180339887498949


class Regions(Condition):
    """Mean shift, then neighbouring pixels of similar colour form a region. A region's colour says nothing
    about the colours of the picture.

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
        # computed on a small picture: regions are coarse, and mean shift is slow
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
    """Number each pixel's region, from 1: int32 [H, W]. Neighbours that differ by at most `near` (of 255) in
    each colour belong to the same region."""
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
    """Colour the regions in order of size, the largest first; regions with less than the share `smallest`
    of all pixels are black. uint8 [H, W, 3]."""
    counts = np.bincount(labels_HW.ravel())
    # ties: the one that comes first in the picture
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    palette = np.zeros((len(counts), 3), np.uint8)
    for place, label in enumerate(order):
        if counts[label] and counts[label] >= smallest * labels_HW.size:
            rgb = colorsys.hsv_to_rgb(place * _GOLDEN % 1.0, 0.65, 0.95)
            palette[label] = [round(255 * value) for value in rgb]
    return palette[labels_HW]
