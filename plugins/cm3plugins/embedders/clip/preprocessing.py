"""How a picture becomes a CLIP's input: scaled by Pillow, cut to the central square, standardised; as torchvision does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from cm3core.document import PixelArray

Interpolation = Literal["bicubic", "bilinear"]
_RESAMPLING = {"bicubic": Pillow.Resampling.BICUBIC, "bilinear": Pillow.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocessing:
    """OpenAI's by default.

    Args:
        resolution: side of the square in pixels.
        mean, std: of the red, green and blue of 0..1 that the network was trained on.
        interpolation: of the scaling, which is antialiased.
        squash: scale both sides to the square, in place of the short one and a cut.
    """

    resolution: int
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: Interpolation = "bicubic"
    squash: bool = False

    def __call__(self, image: PixelArray) -> Tensor:
        """Float32 [3, resolution, resolution] of a picture uint8 [H, W, 3]."""
        square = self.square(image)
        pixels_3RR = torch.from_numpy(square).permute(2, 0, 1).float() / 255
        return (pixels_3RR - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def square(self, image: PixelArray) -> PixelArray:
        """uint8 [resolution, resolution, 3]. Only what the cut keeps is computed: a picture of 1 x 10,000 pixels is cheap."""
        (height, width), side = image.shape[:2], self.resolution
        if self.squash:
            scaled_height = scaled_width = side
        else:
            scaled_height, scaled_width = (side * height // min(height, width), side * width // min(height, width))
        top, left = round((scaled_height - side) / 2), round((scaled_width - side) / 2)
        box = (left * width / scaled_width, top * height / scaled_height,
               min((left + side) * width / scaled_width, width), min((top + side) * height / scaled_height, height))
        picture = Pillow.fromarray(np.ascontiguousarray(image))
        return np.array(picture.resize((side, side), _RESAMPLING[self.interpolation], box=box))
