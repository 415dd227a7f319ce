"""From a picture to the input of CLIP: scaled by Pillow, centre-cropped, standardised.

As torchvision does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image as Pillow
from torch import Tensor

from cm3core.document import PixelArray

Interpolation = Literal["bicubic", "bilinear"]
_RESAMPLING = {"bicubic": Pillow.Resampling.BICUBIC, "bilinear": Pillow.Resampling.BILINEAR}
#: Sides longer than this multiple of the short one are cropped to it before scaling.
_LONGEST = 8


@dataclass(frozen=True)
class Preprocessing:
    """OpenAI's by default.

    Args:
        resolution: side of the square in pixels.
        mean, std: of red, green and blue (0..1) of the pictures that the network was trained on.
        interpolation: of the scaling, which is antialiased.
        squash: scale both sides to the square, instead of scaling the short one and cropping.
    """

    resolution: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    squash: bool = False

    def __call__(self, image: PixelArray) -> Tensor:
        """Float32 [3, resolution, resolution] of a picture uint8 [H, W, 3]."""
        square = self.square(image)
        pixels_3RR = rearrange(torch.from_numpy(square), "H W C -> C H W").float() / 255
        return (pixels_3RR - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[
            :, None, None
        ]

    def square(self, image: PixelArray) -> PixelArray:
        """uint8 [resolution, resolution, 3]."""
        side = self.resolution
        if not self.squash:
            # The middle of a picture of 1 x 10,000 pixels is enough: scaled as a whole, it would be
            # millions of pixels wide.
            (height, width), longest = image.shape[:2], _LONGEST * min(image.shape[:2])
            top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
            image = image[top : top + longest, left : left + longest]
        height, width = image.shape[:2]
        picture, short = Pillow.fromarray(np.ascontiguousarray(image)), min(height, width)
        size = (side, side) if self.squash else (side * width // short, side * height // short)
        scaled = picture.resize(size, _RESAMPLING[self.interpolation])
        left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
        return np.array(scaled.crop((left, top, left + side, top + side)))
