"""The networks of the `light_encoder`: a bag of hashed words and a small convolutional net.

Legend: N texts or pictures, U distinct words, W words of the longest text, D width of a word
vector, E dimension of the shared space, R side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3plugins.embedders.light_encoder.text_features import features_of, words_of


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
    """Means of hashed word features, weighted by learned importance, then a two-layer net."""

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
        """Vectors [N, E] of texts; a text without any word gets the bias alone."""
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
    """Convolutional stages, then weighted mean and maximum of each channel, and a linear map."""

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
        """Vectors [N, E] of pictures, float 0..1, already R x R."""
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
        # exp(2.7) = 1 / 0.067, the usual initial value in CLIP-like training
        self.log_scale = nn.Parameter(torch.tensor(2.7))
