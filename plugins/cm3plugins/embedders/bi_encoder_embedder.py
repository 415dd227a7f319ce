"""The `bi_encoder` embedder at work, and its file: safetensors in fp16 with the sizes in the header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import atomic_path, sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.bi_encoder_towers import Towers, TowerSizes
from cm3plugins.embedders.text_features import TEXT_FEATURES_VERSION

_FORMAT = "cm3leon bi_encoder 1"
T = TypeVar("T")


class BiEncoder(Embedder):
    """Text and pictures in one space by two small towers.

    Args:
        towers: the trained networks.
        fingerprint: hash of their weights.
        batch_size: items in one forward pass.

    Example:
        >>> from cm3plugins.embedders import BiEncoderConfig
        >>> BiEncoderConfig().build().embed_texts(["red apple, noto style"]).shape
        (1, 128)
    """

    def __init__(self, towers: Towers, fingerprint: str, batch_size: int = 256) -> None:
        self._towers = towers.eval().requires_grad_(False)
        self._fingerprint, self._batch_size = fingerprint, batch_size

    @classmethod
    def load(cls, path: Path, batch_size: int = 256) -> BiEncoder:
        """Read weights that `save_towers` wrote. Raises `CheckpointError` when the file can't be used."""
        retrain = "use a file that `python -m cm3plugins.embedders.train_bi_encoder` wrote"
        if not path.is_file():
            raise CheckpointError(str(path), "there is no such file", retrain)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name).float() for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(str(path), f"is not a whole safetensors file ({error})", retrain) from error
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(str(path), f"is not of the format {_FORMAT!r}", retrain)
        sizes: dict[str, Any] = json.loads(metadata["sizes"], object_hook=lambda fields: {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
        towers = Towers(TowerSizes(**sizes))
        try:
            towers.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointError(str(path), f"holds other tensors than its sizes say ({error})", retrain) from error
        digest = hashlib.sha256(f"{sha256_file(path)}:{TEXT_FEATURES_VERSION}".encode()).hexdigest()
        return cls(towers, f"bi_encoder-{digest[:16]}", batch_size)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._towers.sizes.dimension

    @property
    def fingerprint(self) -> str:
        """Hash of the weights' file and of how text becomes features."""
        return self._fingerprint

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        return _in_batches(texts, self._batch_size, self._towers.text)

    @torch.inference_mode()
    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return _in_batches(images, self._batch_size, lambda batch: self._towers.image(
            torch.cat([square(image, self._towers.sizes.resolution) for image in batch])))


def _in_batches(items: Sequence[T], batch_size: int, embed: Callable[[Sequence[T]], Tensor]) -> VectorArray:
    rows = [embed(items[start:start + batch_size]) for start in range(0, len(items), batch_size)]
    return np.asarray(torch.cat(rows).numpy(), dtype=np.float32)


def square(image: PixelArray, side: int) -> Tensor:
    """The central square of a picture, scaled with antialiasing: float [1, 3, side, side], 0..1."""
    height, width = image.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    cut = torch.from_numpy(np.array(image[top:top + short, left:left + short]))  # a copy: ours may be read-only
    pixels = cut.permute(2, 0, 1)[None].float() / 255
    if short == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def save_towers(towers: Towers, path: Path) -> None:
    """Write the weights as fp16 safetensors, atomically."""
    tensors = {name: value.half().contiguous() if value.is_floating_point() else value
               for name, value in towers.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": _FORMAT, "sizes": json.dumps(dataclasses.asdict(towers.sizes))})
