"""The `bi_encoder` embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cm3core.document import PixelArray
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.bi_encoder.heads import Heads, load_heads
from cm3plugins.embedders.bi_encoder.networks import Networks
from cm3plugins.embedders.inputs import in_batches


class BiEncoder(Embedder):
    """Text and pictures in one space: frozen networks, trained heads.

    Args:
        networks: the frozen ones.
        heads: the trained ones, on top of them.
        fingerprint: hash of both.
        batch_size: items per forward pass.

    Example:
        >>> from cm3plugins.embedders import BiEncoderConfig
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
        """Hash of the networks' and the heads' weights, and of how features are computed."""
        return self._fingerprint

    def move_to(self, device: torch.device) -> None:
        """Compute there from now on."""
        self._networks.move_to(device)
        self._heads.to(device)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        # a batch is as slow as its longest text
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
