"""Training data of an upscaler: crops of small pictures and the matching large crops.

Shape legend: N pictures, B crops, H W pixels, C channels.
"""

from __future__ import annotations

import numpy as np

from cm3core.document import PixelArray
from cm3plugins.upscalers.edsr.settings import EDSRTraining


class CropSampler:
    """Crops of small pictures and the matching crops of the large ones.

    The crops of a step are a function of (seed, step).

    Args:
        large_NHWC: uint8.
        small_NHWC, reconstructed_NHWC: uint8, `scale` times smaller.
        training: how to draw the crops.
    """

    def __init__(
        self,
        large_NHWC: PixelArray,
        small_NHWC: PixelArray,
        reconstructed_NHWC: PixelArray,
        training: EDSRTraining,
    ) -> None:
        self.large_NHWC, self.sorts, self.training = (
            large_NHWC,
            (small_NHWC, reconstructed_NHWC),
            training,
        )
        self.scale = large_NHWC.shape[1] // small_NHWC.shape[1]

    def batch(self, step: int) -> tuple[PixelArray, PixelArray]:
        """Small crops uint8 [B, c, c, 3], large [B, scale * c, scale * c, 3]; c = `crop_size`."""
        training, scale = self.training, self.scale
        rng = np.random.default_rng((training.seed, step))
        pairs = []
        for index in self._indices(step):
            sort = int(rng.random() < training.reconstructed_share)
            y, x = self._place(self.sorts[sort][index], rng)
            size = training.crop_size
            small = self.sorts[sort][index, y : y + size, x : x + size]
            large = self.large_NHWC[
                index, y * scale : (y + size) * scale, x * scale : (x + size) * scale
            ]
            way = int(rng.integers(8)) if training.turn else 0
            pairs.append((turned(small, way), turned(large, way)))
        return np.stack([small for small, _ in pairs]), np.stack([large for _, large in pairs])

    def _indices(self, step: int) -> list[int]:
        """Each epoch is a permutation by (seed, epoch); batches run across epochs."""
        num, size = len(self.large_NHWC), self.training.batch_size
        places = np.arange(step * size, (step + 1) * size)
        orders = {
            epoch: np.random.default_rng((self.training.seed, 1, epoch)).permutation(num)
            for epoch in set((places // num).tolist())
        }
        return [int(orders[place // num][place % num]) for place in places.tolist()]

    def _place(self, picture_HWC: PixelArray, rng: np.random.Generator) -> tuple[int, int]:
        """The position, of several tried, where the crop's colours vary most."""
        size = self.training.crop_size
        limits = [side - size + 1 for side in picture_HWC.shape[:2]]
        tried = rng.integers(limits, size=(self.training.num_tried_crops, 2)).tolist()
        y, x = max(
            tried,
            key=lambda place: picture_HWC[
                place[0] : place[0] + size, place[1] : place[1] + size
            ].std(),
        )
        return y, x


def turned(picture_HWC: PixelArray, way: int) -> PixelArray:
    """One of the eight symmetries: rotated by `way` % 4 quarters, mirrored if `way` >= 4."""
    picture_HWC = np.rot90(picture_HWC, way % 4)
    return picture_HWC[:, ::-1] if way >= 4 else picture_HWC
