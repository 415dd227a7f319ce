"""`PublicTokenizer`: a published VQ network behind the framework's image tokenizer interface.

Legend: N pictures, H W pixels, Y X code grid, c = Y * X codes of a picture, K codebook entries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from cm3core.document import IntArray, PixelArray
from cm3core.files import atomic_path
from cm3core.interfaces.image_tokenizer import ImageTokenizer
from cm3plugins.image_tokenizers.public.dvae import DVAE
from cm3plugins.image_tokenizers.public.facts import Published
from cm3plugins.image_tokenizers.public.files import check_hash, read_network
from cm3plugins.image_tokenizers.public.model import PublicVQ
from cm3plugins.image_tokenizers.vqgan.tokenizer import to_input, to_pixels

#: Pixels per forward pass: one picture of 512 px, four of 256 px.
_BATCH_PIXELS = 512 * 512
#: A checkpoint's copy of the weights.
SAVED = "model.safetensors"


class PublicTokenizer(ImageTokenizer):
    """Pixels <-> codes by a published network, on the CPU, in fp32.

    Args:
        model: the network.
        facts: what is known of its file.
        image_size: (height, width) of pictures.
    """

    def __init__(
        self, model: PublicVQ | DVAE, facts: Published, image_size: tuple[int, int]
    ) -> None:
        self.model, self.facts, self._image_size = model, facts, image_size
        self._fingerprint: str | None = None

    @classmethod
    def from_file(
        cls,
        path: Path,
        facts: Published,
        image_size: tuple[int, int],
        *,
        sha256: str | None = None,
        others: Mapping[str, Published] | None = None,
        second: Path | None = None,
    ) -> PublicTokenizer:
        """Load the tokenizer from a file; tensors are read, nothing is executed.

        Args:
            path: the file.
            facts: what its network must be.
            image_size: (height, width) of pictures.
            sha256: if given, the file's hash must be this.
            others: published files that it might be instead, for the error.
            second: the decoder's file, where the decoder has its own.

        Raises:
            CheckpointError: the file can't be read, is of another model, or has another hash.
        """
        check_hash(path, sha256, "weights_sha256")
        return cls(read_network(path, facts, others or {}, second=second), facts, image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self._image_size
        return height // self.facts.downsampling, width // self.facts.downsampling

    @property
    def codebook_size(self) -> int:
        return self.facts.num_codes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over quantiser, size of pictures, and the weights that define the codes."""
        if self._fingerprint is None:
            digest = hashlib.sha256(f"{self.facts.quantizer} {self._image_size}".encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                if not name.startswith(("decoder.", "post_quant_conv.")):
                    digest.update(f"{name}{list(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def _batch_size(self) -> int:
        return max(1, _BATCH_PIXELS // (self._image_size[0] * self._image_size[1]))

    @torch.inference_mode()
    def _encode(self, pixels_NHWC: PixelArray) -> IntArray:
        batches = [
            self.model.encode(to_input(pixels_NHWC[i : i + self._batch_size])).flatten(1)
            for i in range(0, len(pixels_NHWC), self._batch_size)
        ]
        if not batches:
            return np.zeros((0, self.grid[0] * self.grid[1]), np.int32)
        return torch.cat(batches).to(torch.int32).numpy()

    @torch.inference_mode()
    def _decode(self, codes_Nc: IntArray) -> PixelArray:
        codes_NYX = rearrange(torch.from_numpy(codes_Nc).long(), "N (Y X) -> N Y X", Y=self.grid[0])
        batches = [
            to_pixels(self.model.decode(codes_NYX[i : i + self._batch_size]))
            for i in range(0, len(codes_NYX), self._batch_size)
        ]
        return np.concatenate(batches) if batches else np.zeros((0, *self.image_size, 3), np.uint8)

    def save(self, folder: Path) -> None:
        """Write the tensors under taming's names, in fp32."""
        tensors = {
            name: tensor.contiguous().clone() for name, tensor in self.model.state_dict().items()
        }
        with atomic_path(folder / SAVED) as temporary:
            save_file(tensors, temporary)

    def codebook(self) -> Tensor:
        """The code vectors, fp32 [K, D]; on the unit sphere if they are compared there."""
        return self.model.entries().detach().clone()
