"""Convert boxes and masks of a picture of any size to cells of the code grid, and back.

The image tokenizer sees the largest centred crop of a picture in the tokenizer's aspect ratio (a
square for all current ones), scaled to the tokenizer's size (`cm3core.images.fit`). Coordinates: x to the right, y
down, in pixels of the input picture; boxes are half open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from cm3core import images
from cm3core.document import BoolArray, PixelArray
from cm3core.errors import GenerationError

#: (x0, y0, x1, y1): columns x0..x1-1 and rows y0..y1-1 of a picture.
Box: TypeAlias = tuple[int, int, int, int]

#: A mask pixel counts as set if it is brighter than this (0..255).
WHITE = 127
_EPSILON = 1e-6


@dataclass(frozen=True)
class CentreCrop:
    """The part of a picture that the image tokenizer sees.

    Args:
        picture_size: (height, width) of the picture.
        model_size: (height, width) of the tokenizer's input.
    """

    picture_size: tuple[int, int]
    model_size: tuple[int, int]

    @property
    def scale(self) -> float:
        """Pixels of the model's picture per pixel of the input."""
        return max(
            model / own for model, own in zip(self.model_size, self.picture_size, strict=True)
        )

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels of the input, not rounded."""
        height, width = (size / self.scale for size in self.model_size)
        y0, x0 = (self.picture_size[0] - height) / 2, (self.picture_size[1] - width) / 2
        return x0, y0, x0 + width, y0 + height

    @property
    def pixels(self) -> Box:
        """The extent in whole pixels, at least one."""
        x0, y0, x1, y1 = self.extent
        left, top = math.floor(x0 + _EPSILON), math.floor(y0 + _EPSILON)
        return left, top, left + max(1, round(x1 - x0)), top + max(1, round(y1 - y0))

    def cells(self, box: Box, grid: tuple[int, int]) -> BoolArray:
        """The codes that the box touches, bool [rows * columns].

        Raises `GenerationError` for a box that is empty or reaches outside.
        """
        self._check(box)
        x0, y0, x1, y1 = self.extent
        rows, columns = grid
        touched = np.zeros(grid, np.bool_)
        top, bottom = _touched(box[1], box[3], y0, (y1 - y0) / rows, rows)
        left, right = _touched(box[0], box[2], x0, (x1 - x0) / columns, columns)
        touched[top:bottom, left:right] = True
        return touched.reshape(-1)

    def mask_cells(self, mask_HW: BoolArray, grid: tuple[int, int]) -> BoolArray:
        """The codes that true pixels of the mask touch, bool [rows * columns].

        Raises:
            GenerationError: the mask's size differs from the picture's, no pixel is true, or a true pixel lies
                outside the part that the model sees.
        """
        if mask_HW.shape != self.picture_size:
            raise GenerationError(
                "mask",
                f"is {mask_HW.shape[1]} x {mask_HW.shape[0]} pixels, the picture is "
                f"{self.picture_size[1]} x {self.picture_size[0]}",
                "resize the mask to the picture's size",
            )
        if not mask_HW.any():
            raise GenerationError("mask", "is empty", "mark what to inpaint (white, or true)")
        seen = self.pixels
        inside = np.zeros_like(mask_HW)
        inside[seen[1] : seen[3], seen[0] : seen[2]] = True
        if (mask_HW & ~inside).any():
            middle = ",".join(map(str, seen))
            raise GenerationError(
                "mask",
                f"reaches outside the middle part of the picture that the model sees ({middle})",
                "stay within that, or crop the picture first",
            )
        x0, y0, x1, y1 = self.extent
        by_row = _touches(mask_HW.shape[0], y0, (y1 - y0) / grid[0], grid[0])
        by_column = _touches(mask_HW.shape[1], x0, (x1 - x0) / grid[1], grid[1])
        touched: BoolArray = (by_row.T @ mask_HW.astype(np.float64) @ by_column > 0).reshape(-1)
        return touched

    def mask_of(self, boxes: Sequence[Box]) -> BoolArray:
        """The pixels inside any of the boxes, bool [height, width]."""
        mask_HW: BoolArray = np.zeros(self.picture_size, np.bool_)
        for box in boxes:
            self._check(box)
            mask_HW[box[1] : box[3], box[0] : box[2]] = True
        return mask_HW

    def pasted(self, picture: PixelArray, decoded: PixelArray, mask_HW: BoolArray) -> PixelArray:
        """A copy of `picture` [height, width, 3] with the masked pixels taken from `decoded`.

        `decoded` is scaled back; `mask_HW` is a mask that `mask_cells` accepts.
        """
        x0, y0, x1, y1 = self.pixels
        if decoded.shape[:2] != (y1 - y0, x1 - x0):
            decoded = np.asarray(
                Image.fromarray(decoded).resize((x1 - x0, y1 - y0), Image.Resampling.LANCZOS)
            )
        result = picture.copy()
        part = mask_HW[y0:y1, x0:x1]
        result[y0:y1, x0:x1][part] = decoded[part]
        return result

    def _check(self, box: Box) -> None:
        height, width = self.picture_size
        name = f"box {','.join(map(str, box))}"
        if box[0] >= box[2] or box[1] >= box[3]:
            raise GenerationError(name, "is empty", "use x0,y0,x1,y1 with x0 < x1 and y0 < y1")
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            raise GenerationError(
                name,
                f"reaches outside the picture of {width} x {height} pixels",
                f"stay within 0,0,{width},{height}",
            )
        seen = self.pixels
        if box[0] < seen[0] or box[1] < seen[1] or box[2] > seen[2] or box[3] > seen[3]:
            middle = ",".join(map(str, seen))
            raise GenerationError(
                name,
                f"reaches outside the middle part of the picture that the model sees ({middle})",
                "stay within that, or crop the picture around the box first",
            )


def region(
    crop: CentreCrop,
    grid: tuple[int, int],
    box: Box | Sequence[Box] | None,
    mask: BoolArray | str | Path | None,
) -> tuple[BoolArray, BoolArray]:
    """The region to inpaint, as pixels and as codes.

    Args:
        crop: the part of the picture that the model sees.
        grid: (rows, columns) of codes.
        box: one box or several; None if a mask is given.
        mask: bool [height, width] of the picture, or the file of a picture that is white there;
            None if a box is given.

    Returns:
        pixels of the picture, bool [height, width], and codes, bool [rows * columns].
    """
    if (box is None) == (mask is None):
        raise GenerationError("infill", "takes a box or a mask", "give one of the two")
    if mask is not None:
        if isinstance(mask, (str, Path)):
            mask = images.open_image(mask).mean(2) > WHITE
        region_HW = np.asarray(mask, np.bool_)
        return region_HW, crop.mask_cells(region_HW, grid)
    boxes = (
        [cast(Box, box)]
        if box is not None and len(box) and isinstance(box[0], Integral)
        else [cast(Box, one) for one in (() if box is None else box)]
    )
    if not boxes:
        raise GenerationError("box", "is missing", "give (x0, y0, x1, y1), or several of them")
    missing: BoolArray = np.any([crop.cells(one, grid) for one in boxes], axis=0)
    return crop.mask_of(boxes), missing


def _touches(pixels: int, start: float, size: float, number: int) -> npt.NDArray[np.float64]:
    """1.0 where a pixel (row) touches a cell (column), [pixels, number].

    Cells are `size` pixels wide and begin at `start`.
    """
    low = np.arange(pixels)
    first = np.floor((low - start) / size + _EPSILON).clip(0, number - 1)
    last = np.ceil((low + 1 - start) / size - _EPSILON).clip(first + 1, number)
    cells = np.arange(number)
    result: npt.NDArray[np.float64] = ((cells >= first[:, None]) & (cells < last[:, None])).astype(
        np.float64
    )
    return result


def _touched(low: int, high: int, start: float, size: float, number: int) -> tuple[int, int]:
    """Half-open range of the cells that the pixels low..high-1 touch.

    There are `number` cells, `size` pixels wide, beginning at `start`.
    """
    first = math.floor((low - start) / size + _EPSILON)
    last = math.ceil((high - start) / size - _EPSILON)
    first = min(max(first, 0), number - 1)
    return first, max(min(last, number), first + 1)
