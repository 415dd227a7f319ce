"""The `clip` embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.clip.checkpoint import CLIPCheckpoint, read_checkpoint
from cm3plugins.embedders.clip.tokenizer import CLIPTokenizer, load_tokenizer
from cm3plugins.embedders.clip.towers import CLIPTowers
from cm3plugins.embedders.inputs import in_batches
from cm3plugins.embedders.weights import fill


class CLIP(Embedder):
    """Embeds texts and pictures in one space with a trained CLIP, in float32.

    Args:
        checkpoint: weights, sizes and preprocessing.
        towers: the networks, with these weights.
        tokenizer: maps text to ids.
        fingerprint: hash of everything that determines a vector.
        batch_size: items per forward pass.
        device: device to run on.
    """

    def __init__(
        self,
        checkpoint: CLIPCheckpoint,
        towers: CLIPTowers,
        tokenizer: CLIPTokenizer,
        fingerprint: str,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ) -> None:
        if tokenizer.vocab_size > checkpoint.sizes.vocab_size:
            raise CheckpointError(
                str(checkpoint.path),
                f"has {checkpoint.sizes.vocab_size} text ids, but its tokenizer has "
                f"{tokenizer.vocab_size}",
                "put the tokenizer of these weights next to them",
            )
        self._towers = towers.eval().requires_grad_(False).to(device)
        self._checkpoint, self._tokenizer, self._fingerprint = checkpoint, tokenizer, fingerprint
        self._batch_size, self._device = batch_size, device

    @classmethod
    def load(
        cls,
        path: Path,
        quick_gelu: bool | None = None,
        *,
        batch_size: int = 32,
        device: torch.device | str = "cpu",
    ) -> CLIP:
        """Read a file or folder (see `CLIPConfig`); raises `CheckpointError` if unusable."""
        checkpoint = read_checkpoint(path, quick_gelu)
        towers = towers_of(checkpoint)
        tokenizer = load_tokenizer(checkpoint.path.parent, checkpoint.sizes.context_length)
        identity = f"{sha256_file(checkpoint.path)} {checkpoint.sizes} {checkpoint.preprocessing} {tokenizer.fingerprint}"
        digest = hashlib.sha256(identity.encode("utf-8")).hexdigest()
        return cls(checkpoint, towers, tokenizer, f"clip-{digest[:16]}", batch_size, device)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._checkpoint.sizes.dimension

    @property
    def fingerprint(self) -> str:
        """Hash of weights, sizes, activation, preprocessing and tokenizer."""
        return self._fingerprint

    @property
    def summary(self) -> str:
        """Origin, sizes, activation and its source, in one line."""
        return self._checkpoint.summary

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
        self._towers.to(device)
        self._device = device

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return in_batches(
            texts,
            self._batch_size,
            lambda batch: self._towers.encode_texts(
                *(tensor.to(self._device) for tensor in self._tokenizer.encode(batch))
            ),
        )

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return in_batches(
            images,
            self._batch_size,
            lambda batch: self._towers.visual(
                torch.stack([self._checkpoint.preprocessing(image) for image in batch]).to(
                    self._device
                )
            ),
        )


def towers_of(checkpoint: CLIPCheckpoint) -> CLIPTowers:
    """Build towers with a checkpoint's weights; raises `CheckpointError` if tensors don't fit."""
    with torch.device("meta"):  # no memory and no random numbers before the weights are loaded
        towers = CLIPTowers(checkpoint.sizes)
    fill(
        towers,
        checkpoint.tensors,
        checkpoint.path,
        "use a CLIP saved by OpenAI, open_clip or Hugging Face",
    )
    return towers
