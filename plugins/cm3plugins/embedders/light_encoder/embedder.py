"""The `light_encoder` embedder, and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.inputs import in_batches, square
from cm3plugins.embedders.light_encoder.looks import RESOLUTION, Looks, load_looks
from cm3plugins.embedders.light_encoder.text_features import TEXT_FEATURES_VERSION
from cm3plugins.embedders.light_encoder.towers import Towers, TowerSizes
from cm3plugins.embedders.weights import fill, read_weights, save_weights

_FORMAT = "cm3leon light_encoder 1"
_NEXT = "use a file that `cm3 embedder train light_encoder` wrote"


class LightEncoder(Embedder):
    """Text and pictures in one space by two small towers.

    Args:
        towers: the trained networks.
        fingerprint: hash of their weights.
        batch_size: items per forward pass.
        looks: how pictures are compared with pictures, and its fingerprint; None: by the picture tower.

    Example:
        >>> from cm3plugins.embedders import LightEncoderConfig
        >>> LightEncoderConfig().build().embed_texts(["red apple, noto style"]).shape
        (1, 128)
    """

    def __init__(
        self,
        towers: Towers,
        fingerprint: str,
        batch_size: int = 256,
        looks: tuple[Looks, str] | None = None,
    ) -> None:
        self._towers = towers.eval().requires_grad_(False)
        self._fingerprint, self._batch_size = fingerprint, batch_size
        self._looks: Looks | None = looks[0] if looks else None
        self._looks_fingerprint = looks[1] if looks else fingerprint
        self._device = torch.device("cpu")

    @classmethod
    def load(cls, path: Path, batch_size: int = 256, looks: Path | None = None) -> LightEncoder:
        """Read weights that `save_towers` and `save_looks` wrote; raises `CheckpointError` if they can't be used."""
        header, tensors = read_weights(path, _FORMAT, _NEXT)
        try:
            sizes: dict[str, Any] = header["sizes"]
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in sizes.items()
            }
            towers = Towers(TowerSizes(**fields))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                str(path), f"its header gives no sizes ({error})", _NEXT
            ) from error
        fill(towers, tensors, path, _NEXT)
        digest = hashlib.sha256(f"{sha256_file(path)}:{TEXT_FEATURES_VERSION}".encode()).hexdigest()
        own_looks = None if looks is None else load_looks(looks)
        return cls(towers, f"light_encoder-{digest[:16]}", batch_size, own_looks)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._towers.sizes.dimension

    @property
    def fingerprint(self) -> str:
        """Hash of the weights' file and of how text becomes features."""
        return self._fingerprint

    @property
    def looks_fingerprint(self) -> str:
        """Hash of the file by which pictures are compared with pictures."""
        return self._looks_fingerprint

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._towers.to(device)
        if self._looks is not None:
            self._looks.to(device)
        self._device = device

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return in_batches(texts, self._batch_size, self._towers.text)

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return in_batches(
            images,
            self._batch_size,
            lambda batch: self._towers.image(self._pixels(batch, self._towers.sizes.resolution)),
        )

    @torch.inference_mode()
    def _embed_looks(self, images: Sequence[PixelArray]) -> VectorArray:
        looks = self._looks
        if looks is None:
            return self._embed_images(images)
        vectors_NE = in_batches(
            images, self._batch_size, lambda batch: looks(self._pixels(batch, RESOLUTION))
        )
        # the best directions come first: of narrower towers the first, of wider ones all and zeros
        fitted = np.zeros((len(images), self.dimension), np.float32)
        width = min(vectors_NE.shape[1], self.dimension)
        fitted[:, :width] = vectors_NE[:, :width]
        return fitted

    def _pixels(self, batch: Sequence[PixelArray], side: int) -> Tensor:
        """Pictures float [N, 3, side, side], 0..1."""
        return torch.cat([square(image, side) for image in batch]).to(self._device)


def save_towers(towers: Towers, path: Path) -> None:
    """Write the weights as fp16 safetensors, atomically."""
    save_weights(path, towers, _FORMAT, {"sizes": asdict(towers.sizes)})
