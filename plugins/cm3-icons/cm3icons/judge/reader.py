"""The network of the judge's readers of icons, and its files: ink -> unit vectors.

Legend: N pictures, S side of a picture, D numbers of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cm3core.errors import CheckpointError
from cm3plugins.trained.four_bits import dequantise

_FORMAT = "cm3leon reader of icons 1"
_NEXT = "reinstall cm3leon"
_BATCH = 512

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ReaderSizes:
    """Sizes of the network.

    Args:
        side: S.
        widths: channels of the stages, each of half the side of the one before.
        blocks: residual blocks of each stage.
        dimension: D.
    """

    side: int = 48
    widths: tuple[int, ...] = (32, 64, 128, 192)
    blocks: tuple[int, ...] = (0, 1, 1, 0)
    dimension: int = 128


class Reader(nn.Module):
    """Ink [N, 1, S, S], 0 to 1 -> unit vectors [N, D]."""

    def __init__(self, sizes: ReaderSizes) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before, kernel = 1, 5
        for width, blocks in zip(sizes.widths, sizes.blocks, strict=True):
            stages += [_half(before, width, kernel), *(_Block(width) for _ in range(blocks))]
            before, kernel = width, 3
        self.stages = nn.Sequential(*stages)
        self.out = nn.Linear(2 * before, sizes.dimension)

    def forward(self, ink_N1SS: Tensor) -> Tensor:
        """Read pictures."""
        seen = self.stages(ink_N1SS)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], dim=1)
        return F.normalize(self.out(pooled).float(), dim=1)


def _half(before: int, width: int, kernel: int) -> nn.Module:
    """A stage's first layer, which halves the side."""
    layer = nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU())


class _Block(nn.Module):
    """Two layers whose result is added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.inner(x))


def load_reader(path: Path) -> tuple[Reader, ReaderSizes]:
    """Read a network: matrices in four bits a weight, the rest in half precision.

    Raises:
        CheckpointError: the file is missing, damaged, or of another format.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["cm3leon"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header.pop("format") != _FORMAT:
            raise ValueError(f"it is not of the format {_FORMAT!r}")
        values: dict[str, Any] = {
            key: tuple(own) if isinstance(own, list) else own for key, own in header.items()
        }
        sizes = ReaderSizes(**values)
        network = Reader(sizes)
        state = network.state_dict()
        for name, value in state.items():
            if f"{name}.codes" in tensors:
                found = dequantise(tensors[f"{name}.codes"], tensors[f"{name}.scales"])
                state[name] = found.reshape(value.shape)
            elif value.is_floating_point():
                state[name] = tensors[name].float()
        network.load_state_dict(state)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        cause = f"is not the network of a reader of icons ({error})"
        raise CheckpointError(str(path), cause, _NEXT) from error
    return network.eval().requires_grad_(False), sizes


def read(network: Reader, inks_NSS: Sequence[NDArray[np.uint8]]) -> Floats:
    """Return unit vectors float32 [N, D] of inks uint8 [S, S]."""
    rows = [np.zeros((0, network.out.out_features), np.float32)]
    with torch.inference_mode():
        for start in range(0, len(inks_NSS), _BATCH):
            part = torch.from_numpy(np.stack(inks_NSS[start : start + _BATCH]))
            rows.append(network(part.float()[:, None] / 255).numpy())
    return np.concatenate(rows)
