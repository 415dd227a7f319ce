"""The two grids of a picture of GLM-Image, and what its second stage takes. Light.

A picture is a preview of some 256 codes and then the picture itself, in one sequence of codes. Sizes: transformers'
`GlmImageProcessor`; second stage: diffusers' `GlmImagePipeline` (both Apache-2.0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cm3core.document import Codes

#: Pixels per code.
DOWNSAMPLING = 32
#: Codes of a side of a square preview.
PREVIEW = 16


def grids_of(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (rows, columns) of the preview and of the picture, for a size in pixels.

    >>> grids_of(1024, 1024), grids_of(1152, 768)
    (((16, 16), (32, 32)), ((19, 13), (36, 24)))
    """
    rows, columns = height // DOWNSAMPLING, width // DOWNSAMPLING
    ratio = rows / columns
    return (int(math.sqrt(ratio) * PREVIEW), int(math.sqrt(1 / ratio) * PREVIEW)), (rows, columns)


def prior_token_ids(picture: Codes, height: int, width: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return what diffusers' `GlmImagePipeline` takes as `prior_token_ids`, int64 [1, 4 * rows * columns].

    Args:
        picture: codes that a model with the image tokenizer `glm_image` drew.
        height, width: size of the picture in pixels.
    """
    preview, (rows, columns) = grids_of(height, width)
    codes = picture.codes[preview[0] * preview[1] :].reshape(rows, columns)
    return codes.repeat(2, axis=0).repeat(2, axis=1).reshape(1, -1).astype(np.int64)
