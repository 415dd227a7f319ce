"""Learned perceptual image patch similarity (Zhang et al. 2018, arXiv:1801.03924), version 0.1: squared
differences of a network's unit activations, weighted by learned heads, averaged over positions, summed over layers.

The backbone is torchvision's file, the heads come from the `lpips` package; the user provides both files.
Legend: C channels, H x W positions.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError, DataError
from cm3core.interfaces.metric import Score
from cm3plugins.metrics.collecting import mean_score
from cm3plugins.metrics.fidelity import PairMetric

HEADS_ARE = "https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1"
#: Mean and standard deviation of ImageNet, for pixels from -1 to 1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10


@dataclass(frozen=True)
class Layer:
    """A convolution with ReLU.

    Args:
        place: its index in torchvision's `features`.
        num_in, num_out: channels.
        kernel, stride, padding: in pixels.
        pooled: (kernel, stride) of the maximum pool before it; None: there is none.
        compared: whether its activations are compared.
    """

    place: int
    num_in: int
    num_out: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pooled: tuple[int, int] | None = None
    compared: bool = False


@dataclass(frozen=True)
class Backbone:
    """A network: its layers, the minimum side of a picture in pixels, and where its file is published."""

    layers: Sequence[Layer]
    least_side: int
    published: str


def _vgg16() -> tuple[Layer, ...]:
    layers: list[Layer] = []
    place, num_in = 0, 3
    for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        for own in range(depth):
            pooled = (2, 2) if block and not own else None
            layers.append(Layer(place, num_in, width, pooled=pooled, compared=own == depth - 1))
            place, num_in = place + 2, width
        place += 1
    return tuple(layers)


BACKBONES: Mapping[str, Backbone] = {
    "alex": Backbone(
        (
            Layer(0, 3, 64, 11, 4, 2, None, True),
            Layer(3, 64, 192, 5, 1, 2, (3, 2), True),
            Layer(6, 192, 384, 3, 1, 1, (3, 2), True),
            Layer(8, 384, 256, 3, 1, 1, None, True),
            Layer(10, 256, 256, 3, 1, 1, None, True),
        ),
        31,
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    "vgg": Backbone(_vgg16(), 16, "https://download.pytorch.org/models/vgg16-397923af.pth"),
}


class LPIPSMetric(PairMetric):
    """Mean over pairs, 0 for equal pictures.

    Args:
        backbone: layers of the network.
        weights: (weight, bias) of each layer.
        heads: head of each compared layer, [C].
    """

    def __init__(
        self, backbone: Backbone, weights: Sequence[tuple[Tensor, Tensor]], heads: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self._backbone, self._weights, self._heads = backbone, weights, heads

    def _result(self) -> Sequence[Score]:
        return [mean_score("lpips", self.values, higher_is_better=False)]

    @torch.inference_mode()
    def _of(self, one: PixelArray, other: PixelArray) -> float:
        least = self._backbone.least_side
        if min(one.shape[:2]) < least:
            raise DataError(
                "a picture",
                f"is {one.shape[1]} x {one.shape[0]} pixels, but this network needs {least} per side",
                "evaluate larger pictures",
            )
        pixels = torch.from_numpy(np.stack([one, other])).permute(0, 3, 1, 2).float() / 127.5 - 1
        shift, scale = (torch.tensor(x)[:, None, None] for x in (_SHIFT, _SCALE))
        x_2CHW, total, heads = (pixels - shift) / scale, 0.0, iter(self._heads)
        for layer, (weight, bias) in zip(self._backbone.layers, self._weights, strict=True):
            if layer.pooled is not None:
                x_2CHW = F.max_pool2d(x_2CHW, *layer.pooled)
            x_2CHW = F.relu(F.conv2d(x_2CHW, weight, bias, layer.stride, layer.padding))
            if layer.compared:
                unit_2CHW = x_2CHW / (x_2CHW.norm(dim=1, keepdim=True) + _TINY)
                squared_CHW = (unit_2CHW[0] - unit_2CHW[1]) ** 2
                total += float((next(heads) @ squared_CHW.flatten(1)).mean())
        return total


def load_lpips(network: str, backbone: Path, heads: Path) -> LPIPSMetric:
    """Read the two files.

    Raises:
        CheckpointError: a file is missing, or holds other tensors or more than tensors.
    """
    known = BACKBONES[network]
    step = f"get {known.published}"
    tensors = _tensors(backbone, step)
    weights = [
        (
            _tensor(
                tensors,
                f"features.{one.place}.weight",
                (one.num_out, one.num_in, one.kernel, one.kernel),
                backbone,
                step,
            ),
            _tensor(tensors, f"features.{one.place}.bias", (one.num_out,), backbone, step),
        )
        for one in known.layers
    ]
    step = f"get {network}.pth from {HEADS_ARE}"
    tensors = _tensors(heads, step)
    compared = [one.num_out for one in known.layers if one.compared]
    rows = [
        _tensor(tensors, f"lin{place}.model.1.weight", (1, width, 1, 1), heads, step).flatten()
        for place, width in enumerate(compared)
    ]
    return LPIPSMetric(known, weights, rows)


def _tensors(path: Path, step: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(str(path), "there is no such file", step)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            str(path), f"can't be read as tensors alone ({reason[:200]})", step
        ) from error
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise CheckpointError(str(path), "holds no named tensors", step)
    return found


def _tensor(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], path: Path, step: str
) -> Tensor:
    found = tensors.get(name)
    if found is None or tuple(found.shape) != shape:
        cause = "has no tensor" if found is None else f"has shape {list(found.shape)} for"
        raise CheckpointError(str(path), f"{cause} {name!r}, expected {list(shape)}", step)
    return found.float()
