"""Helpers for pictures and batches, shared by several embedders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.interfaces.embedder import VectorArray

T = TypeVar("T")


def in_batches(
    items: Sequence[T], batch_size: int, embed: Callable[[Sequence[T]], Tensor]
) -> VectorArray:
    """Return the float32 rows of `embed`, computed in batches of `batch_size`; needs at least one item."""
    rows = [embed(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
    return np.asarray(torch.cat(rows).cpu().numpy(), dtype=np.float32)


def square(image: PixelArray, side: int) -> Tensor:
    """Return the central square of a picture, scaled with antialiasing: float [1, 3, side, side], 0..1."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    # a copy: the picture may be read-only
    cut = torch.from_numpy(np.array(image[top : top + short, left : left + short]))
    pixels = rearrange(cut, "H W C -> 1 C H W").float() / 255
    if short == side:
        return pixels
    return F.interpolate(
        pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
