"""Upscaling in tiles, to limit memory; tiles have a margin of context to avoid seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cm3core.document import PixelArray


def spans(length: int, tile: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Yield (input span, kept span) of each tile along one axis, in pixels of the whole picture.

    >>> [(seen.start, seen.stop, kept.start, kept.stop) for seen, kept in spans(10, 4, 2)]
    [(0, 6, 0, 4), (2, 10, 4, 8), (6, 10, 8, 10)]
    """
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        yield slice(max(start - margin, 0), min(stop + margin, length)), slice(start, stop)


def upscale_in_tiles(
    pixels_NHWC: PixelArray,
    scale: int,
    tile: int,
    margin: int,
    upscale: Callable[[PixelArray], PixelArray],
) -> PixelArray:
    """Upscale pictures uint8 [N, H, W, 3] to [N, scale * H, scale * W, 3] in tiles.

    Large pictures are processed one tile at a time.

    Args:
        pixels_NHWC: pictures.
        scale: factor of `upscale`.
        tile: pixels per side kept from one call.
        margin: pixels of context around them, where available: if it is the radius of the receptive field
            of `upscale`, the result equals that of the whole picture.
        upscale: maps pictures [n, h, w, 3] to [n, scale * h, scale * w, 3]; n * h * w is at most
            (tile + 2 margin)^2, and n is 1 if a picture is larger than a tile.
    """
    num, height, width, _ = pixels_NHWC.shape
    large_NHWC = np.empty((num, height * scale, width * scale, 3), np.uint8)
    at_once = max(1, (tile + 2 * margin) ** 2 // (height * width))
    for first in range(0, num, at_once):
        batch = slice(first, first + at_once)
        for seen_y, kept_y in spans(height, tile, margin):
            for seen_x, kept_x in spans(width, tile, margin):
                drawn_nHWC = upscale(pixels_NHWC[batch, seen_y, seen_x])
                inner_nHWC = drawn_nHWC[
                    :, _inside(seen_y, kept_y, scale), _inside(seen_x, kept_x, scale)
                ]
                large_NHWC[batch, _scaled(kept_y, scale), _scaled(kept_x, scale)] = inner_nHWC
    return large_NHWC


def _scaled(part: slice, scale: int) -> slice:
    return slice(part.start * scale, part.stop * scale)


def _inside(seen: slice, kept: slice, scale: int) -> slice:
    return slice((kept.start - seen.start) * scale, (kept.stop - seen.start) * scale)
