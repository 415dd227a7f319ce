"""`PublicTokenizer`: a published VQ network behind the framework's image tokenizer interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file

from cm3core.files import atomic_path
from cm3plugins.image_tokenizers.by_network import NetworkTokenizer
from cm3published.image_tokenizers.dvae import DVAE
from cm3published.image_tokenizers.facts import Published
from cm3published.image_tokenizers.files import check_hash, read_network
from cm3published.image_tokenizers.model import PublicVQ

#: A checkpoint's copy of the weights.
SAVED = "model.safetensors"


class PublicTokenizer(NetworkTokenizer):
    """Pixels <-> codes by a published network.

    Args:
        model: the network.
        facts: what is known of its file.
        image_size: (height, width) of pictures.
    """

    batch_pixels: ClassVar[int] = 512 * 512  # four pictures of 256 px

    def __init__(
        self, model: PublicVQ | DVAE, facts: Published, image_size: tuple[int, int]
    ) -> None:
        super().__init__(model)
        self.model, self.facts, self._image_size = model, facts, image_size

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

    def facts_of_codes(self) -> str:
        """The quantiser and the size of pictures."""
        return f"{self.facts.quantizer} {self._image_size}"

    def save(self, folder: Path) -> None:
        """Write the tensors under taming's names, in fp32."""
        tensors = {
            name: tensor.cpu().contiguous().clone()
            for name, tensor in self.model.state_dict().items()
        }
        with atomic_path(folder / SAVED) as temporary:
            save_file(tensors, temporary)
