"""The two trained heads of the `bi_encoder`, and their file.

Legend: N pictures or texts, F features, E dimension of the shared space.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3plugins.embedders.weights import fill, read_weights, save_weights

_FORMAT = "cm3leon bi_encoder 2"
_NEXT = "use a file that `cm3 embedder train bi_encoder` wrote; for one of the earlier, lighter kind use embedder=light_encoder"


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
    """Standardise, then the sum of a linear map and a two-layer net."""

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
        """Take mean and deviation from these features.

        The deviation has a floor, for features that hardly vary.
        """
        self.mean_F.copy_(features_NF.mean(0))
        std_F = features_NF.std(0)
        self.inverse_std_F.copy_(1 / std_F.clamp_min(0.1 * float(std_F.mean())))

    def forward(self, features_NF: Tensor) -> Tensor:
        """Vectors [N, E], not normalised."""
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

    `networks` is the fingerprint of the networks below them.
    """
    save_weights(path, heads, _FORMAT, {"sizes": asdict(heads.sizes), "networks": networks})


def load_heads(path: Path, networks: str) -> Heads:
    """Read what `save_heads` wrote; raises `CheckpointError` if it doesn't fit these networks."""
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
            f"its heads were trained on other networks ({trained_on}, here are {networks})",
            "install the extra `bi_encoder` again, or train: cm3 embedder train bi_encoder",
        )
    fill(heads, tensors, path, _NEXT)
    return heads
