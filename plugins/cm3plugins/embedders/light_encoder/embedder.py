"""The `light_encoder`: features of texts, the networks, and their file.

A text is split into words, and each word becomes hashed features: the word itself and its character n-grams. An unseen
word, a plural or a misspelling thus still lands near related words (the subwords of fastText, Bojanowski et al. 2017).
The networks are a bag of hashed words and a small convolutional net.

Legend: N texts or pictures, U distinct words, W words of the longest text, D width of a word
vector, E dimension of the shared space, R side of a picture in pixels.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.embedder import Embedder, VectorArray
from cm3plugins.embedders.inputs import in_batches, square
from cm3plugins.embedders.light_encoder.looks import RESOLUTION, Looks, load_looks
from cm3plugins.embedders.weights import fill, read_weights

#: Part of the embedder's fingerprint: raise it when features of the same text change.
TEXT_FEATURES_VERSION = 1

_WORD = re.compile(r"[^\W_]+")
_NGRAM_LENGTHS = (3, 4, 5)


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words without accents or punctuation.

    >>> words_of("A Red-Apple, Noto style: piñata's")
    ['a', 'red', 'apple', 'noto', 'style', 'pinata', 's']
    """
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall(
        "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    )


def ngrams_of(word: str) -> list[str]:
    """Return the character n-grams (3 to 5) of a word with boundary marks, except the marked word itself.

    >>> ngrams_of("owl")
    ['<ow', 'owl', 'wl>', '<owl', 'owl>']
    """
    marked = f"<{word}>"
    return [
        marked[start : start + length]
        for length in _NGRAM_LENGTHS
        for start in range(len(marked) - length + 1)
        if length < len(marked)
    ]


@lru_cache(maxsize=1 << 16)
def features_of(word: str, num_buckets: int) -> tuple[int, ...]:
    """Return buckets 0..num_buckets-1 of a word and its n-grams.

    The word counts twice, so that it outweighs a single n-gram.
    """
    whole = _bucket(f"word:{word}", num_buckets)
    return whole, whole, *(_bucket(ngram, num_buckets) for ngram in ngrams_of(word))


def _bucket(name: str, num_buckets: int) -> int:
    """Hash by CRC-32, because Python's own hash differs in every process."""
    return zlib.crc32(name.encode("utf-8")) % num_buckets


@dataclass(frozen=True)
class TowerSizes:
    """The sizes in the header of the weights' file.

    Args:
        num_buckets: rows of the table of hashed features.
        word_width: D.
        text_width: hidden width of the text tower.
        resolution: R, the side that pictures are scaled to.
        channels: output channels of the convolutional stages.
        strides: their strides.
        dimension: E.
    """

    num_buckets: int = 16384
    word_width: int = 64
    text_width: int = 256
    resolution: int = 32
    channels: tuple[int, ...] = (32, 64, 128, 128)
    strides: tuple[int, ...] = (2, 2, 1, 2)
    dimension: int = 128


class TextTower(nn.Module):
    """Averages hashed word features, weighted by learned importance, then applies a two-layer net."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.num_buckets = sizes.num_buckets
        # The last column is the word's importance: "noto", "style" and articles learn to weigh
        # little.
        self.table = nn.EmbeddingBag(sizes.num_buckets, sizes.word_width + 1, mode="mean")
        nn.init.normal_(self.table.weight, std=0.3)
        self.direct = nn.Linear(sizes.word_width, sizes.dimension, bias=False)
        self.hidden = nn.Sequential(
            nn.Linear(sizes.word_width, sizes.text_width),
            nn.GELU(),
            nn.Linear(sizes.text_width, sizes.dimension),
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return vectors [N, E] of texts; a text without words gets the bias alone."""
        device = self.table.weight.device
        words = [words_of(text) for text in texts]
        rows = {
            word: row
            for row, word in enumerate(dict.fromkeys(word for text in words for word in text))
        }
        if not rows:
            rows = {"": 0}
        features = [features_of(word, self.num_buckets) for word in rows]
        offsets = torch.tensor([0] + [len(bag) for bag in features[:-1]]).cumsum(0)
        vectors_UD, importance_U = self.table(
            torch.tensor([i for bag in features for i in bag]).to(device), offsets.to(device)
        ).split([self.direct.in_features, 1], dim=1)
        longest = max(1, max(map(len, words)))
        index_NW = torch.tensor(
            [[rows[w] for w in text] + [0] * (longest - len(text)) for text in words]
        ).to(device)
        absent_NW = torch.arange(longest) >= torch.tensor([len(text) for text in words])[:, None]
        absent_NW = absent_NW.to(device)
        weight_NW = (4 * importance_U)[index_NW].squeeze(-1).exp().masked_fill(absent_NW, 0)
        weight_NW = weight_NW / weight_NW.sum(1, keepdim=True).clamp_min(1e-6)
        mean_ND = torch.einsum("nw,nwd->nd", weight_NW, vectors_UD[index_NW])
        unit_ND = F.normalize(mean_ND, dim=1) * mean_ND.shape[1] ** 0.5
        vectors_NE: Tensor = self.direct(unit_ND) + self.hidden(unit_ND)
        return vectors_NE


class ImageTower(nn.Module):
    """Convolutional stages, then each channel's weighted mean and maximum, and a linear map."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.resolution = sizes.resolution
        layers: list[nn.Module] = []
        side = sizes.resolution
        for before, after, stride in zip(
            (3, *sizes.channels), sizes.channels, sizes.strides, strict=False
        ):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            side = -(-side // stride)
        self.stages = nn.Sequential(*layers)
        # Channels last: a third faster on a CPU.
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        # One learned weight per position and channel instead of a plain mean: the position of a
        # part
        # is informative about the whole.
        self.place = nn.Parameter(torch.ones(sizes.channels[-1], side, side))
        self.out = nn.Linear(2 * sizes.channels[-1], sizes.dimension)

    def forward(self, pixels_N3RR: Tensor) -> Tensor:
        """Return vectors [N, E] of pictures, float 0..1, already R x R."""
        # white is 0, like the convolutions' padding
        ink = (1 - pixels_N3RR).contiguous(memory_format=torch.channels_last)
        features = self.stages(ink)
        pooled = torch.cat([(features * self.place).mean((2, 3)), features.amax((2, 3))], dim=1)
        vectors_NE: Tensor = self.out(pooled)
        return vectors_NE


class Towers(nn.Module):
    """Both towers and the learned temperature of their similarities."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.text, self.image = TextTower(sizes), ImageTower(sizes)
        # exp(2.7) = 1 / 0.067, the usual initial value in CLIP training
        self.log_scale = nn.Parameter(torch.tensor(2.7))


_FORMAT = "cm3leon light_encoder 1"
_NEXT = "leave out embedder.path for the shipped weights"


class LightEncoder(Embedder):
    """Embeds texts and pictures in one space with two small towers.

    Args:
        towers: the trained networks.
        fingerprint: hash of their weights.
        batch_size: items per forward pass.
        looks: network that compares pictures with pictures, and its fingerprint; None: the picture tower.

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
        """Read weights; raises `CheckpointError` if they can't be used."""
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
        """Hash of the weights' file and of the text features."""
        return self._fingerprint

    @property
    def looks_fingerprint(self) -> str:
        """Hash of the weights for comparing pictures with pictures."""
        return self._looks_fingerprint

    def move_to(self, device: torch.device) -> None:
        """Move the computation to a device."""
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
        # directions are sorted, best first: truncate for narrower towers, pad with zeros for wider ones
        fitted = np.zeros((len(images), self.dimension), np.float32)
        width = min(vectors_NE.shape[1], self.dimension)
        fitted[:, :width] = vectors_NE[:, :width]
        return fitted

    def _pixels(self, batch: Sequence[PixelArray], side: int) -> Tensor:
        """Return pictures as float [N, 3, side, side], 0..1."""
        return torch.cat([square(image, side) for image in batch]).to(self._device)
