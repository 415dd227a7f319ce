"""The `minilm` embedder: texts by a sentence encoder, pictures by another embedder, in orthogonal parts of a vector.

Legend: N texts or pictures, D width of the sentence encoder, E dimension: D and that of the pictures' embedder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cm3core.document import PixelArray
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, EmbedderConfig, VectorArray, normalise
from cm3plugins.embedders.inputs import in_batches
from cm3plugins.embedders.minilm.bert import SentenceEncoder
from cm3plugins.embedders.minilm.four_bit import WEIGHTS, load_four_bit

#: Part of the fingerprint: raise it when vectors of the same text change.
_VERSION = 1


class MiniLM(Embedder):
    """Embeds texts by meaning; pictures by another embedder.

    Args:
        folder: the sentence encoder's files: in four bits, or as sentence-transformers publishes them.
        pictures: config of the embedder of pictures.
        batch_size: texts per forward pass.

    Example:
        >>> from cm3plugins.embedders import MiniLMConfig
        >>> dog, puppy, bus = MiniLMConfig().build().embed_texts(["dog", "puppy", "bus"])
        >>> bool(dog @ puppy > dog @ bus)
        True
    """

    def __init__(self, folder: Path, pictures: EmbedderConfig, batch_size: int = 64) -> None:
        self._folder, self._pictures_config, self._batch_size = folder, pictures, batch_size
        in_four_bits = (folder / WEIGHTS).is_file()
        self._texts = load_four_bit(folder) if in_four_bits else SentenceEncoder.load(folder)
        self._weights = folder / (WEIGHTS if in_four_bits else "model.safetensors")
        self._device = torch.device("cpu")

    @cached_property
    def _pictures(self) -> Embedder:
        with torch.random.fork_rng(devices=[]):  # random weights are replaced by the file's
            pictures: Embedder = self._pictures_config.build()
        pictures.move_to(self._device)
        return pictures

    def knows_word(self, word: str) -> bool:
        """Whether a word is one of BERT's 30,522 word pieces."""
        return self._texts.knows_word(word)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._texts.width + self._pictures.dimension

    @cached_property
    def texts_fingerprint(self) -> str:
        """Hash of the sentence encoder's files."""
        parts = sha256_file(self._weights), sha256_file(self._folder / "tokenizer.json"), _VERSION
        return f"minilm-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    @property
    def fingerprint(self) -> str:
        """Hash of the sentence encoder's files, and of the embedder of pictures."""
        return f"{self.texts_fingerprint}+{self._pictures.fingerprint}"

    @property
    def looks_fingerprint(self) -> str:
        """Hash of what `embed_looks` depends on."""
        return f"{self._texts.width}+{self._pictures.looks_fingerprint}"

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
        self._device = device
        self._texts.move_to(device)
        if "_pictures" in self.__dict__:
            self._pictures.move_to(device)

    def sentences(self, texts: Sequence[str]) -> VectorArray:
        """Return unit vectors float32 [N, D] of texts; needs at least one."""
        # the longest text of a batch decides its time
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        vectors = in_batches([texts[place] for place in order], self._batch_size, self._texts)
        unsorted = np.empty_like(vectors)
        unsorted[order] = vectors
        return normalise(unsorted)

    def _embed_texts(self, texts: Sequence[str]) -> VectorArray:
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        vectors[:, : self._texts.width] = self.sentences(texts)
        return vectors

    def _embed_images(self, images: Sequence[PixelArray]) -> VectorArray:
        return self._placed(self._pictures.embed_images(images))

    def _embed_looks(self, images: Sequence[PixelArray]) -> VectorArray:
        return self._placed(self._pictures.embed_looks(images))

    def _placed(self, vectors: VectorArray) -> VectorArray:
        placed = np.zeros((len(vectors), self.dimension), np.float32)
        placed[:, self._texts.width :] = vectors
        return placed
