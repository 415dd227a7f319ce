"""`InceptionExtractor`: the network, its file, and pooled features of pictures scaled in one of two ways.

The network is Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) as in TensorFlow's graph of 2015-12-05, with the
tensor names of the file published by pytorch-fid. It differs from torchvision's: average pools don't count their
padding, the last block pools by maximum, there are 1,008 classes and no auxiliary head.

Legend: N pictures, C channels, H x W.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.nn import functional as F

from cm3core.document import PixelArray
from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.interfaces.extractor import Extractor, FeatureArray

NUM_FEATURES = 2048
NUM_CLASSES = 1008


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_in, num_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(num_out, eps=0.001)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_NCHW)), inplace=True)


def _averaged(x_NCHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_NCHW, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, num_in: int, num_pool: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(num_in, 64, 1)
        self.branch5x5_1 = Convolution(num_in, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(num_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(num_in, num_pool, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        parts = (
            self.branch1x1(x_NCHW),
            self.branch5x5_2(self.branch5x5_1(x_NCHW)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_NCHW))),
            self.branch_pool(_averaged(x_NCHW)),
        )
        return torch.cat(parts, 1)


class MixedB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, num_in: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(num_in, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(num_in, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        parts = (
            self.branch3x3(x_NCHW),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x_NCHW))),
            F.max_pool2d(x_NCHW, 3, stride=2),
        )
        return torch.cat(parts, 1)


class MixedC(nn.Module):
    """17 x 17: 1x1, 7x7 as 1x7 and 7x1, twice of these, pool."""

    def __init__(self, num_in: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(num_in, 192, 1)
        self.branch7x7_1 = Convolution(num_in, width, 1)
        self.branch7x7_2 = Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Convolution(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Convolution(num_in, width, 1)
        self.branch7x7dbl_2 = Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Convolution(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Convolution(num_in, 192, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x_NCHW)))
        parts = (
            self.branch1x1(x_NCHW),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x_NCHW))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_averaged(x_NCHW)),
        )
        return torch.cat(parts, 1)


class MixedD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, num_in: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(num_in, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(num_in, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x_NCHW)))
        parts = (
            self.branch3x3_2(self.branch3x3_1(x_NCHW)),
            self.branch7x7x3_4(seven),
            F.max_pool2d(x_NCHW, 3, stride=2),
        )
        return torch.cat(parts, 1)


class MixedE(nn.Module):
    """8 x 8: 1x1, 3x3 as parallel 1x3 and 3x1, the same after another 3x3, pool.

    Args:
        num_in: input channels.
        by_maximum: pool by maximum instead of average; the graph of 2015 has one block of each.
    """

    def __init__(self, num_in: int, by_maximum: bool) -> None:
        super().__init__()
        self._by_maximum = by_maximum
        self.branch1x1 = Convolution(num_in, 320, 1)
        self.branch3x3_1 = Convolution(num_in, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Convolution(num_in, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Convolution(num_in, 192, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        three = self.branch3x3_1(x_NCHW)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x_NCHW))
        pooled = (
            F.max_pool2d(x_NCHW, 3, stride=1, padding=1) if self._by_maximum else _averaged(x_NCHW)
        )
        parts = (
            self.branch1x1(x_NCHW),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )
        return torch.cat(parts, 1)


class Inception2015(nn.Module):
    """Pictures [N, 3, 299, 299], -1 to 1 -> pooled features [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, by_maximum=False)
        self.Mixed_7c = MixedE(2048, by_maximum=True)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)  # in the file; features are taken before it

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled: Tensor = x.mean((2, 3))
        return pooled


FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED = "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
SIDE = 299
LABELS = {"torch": "pytorch", "clean": "clean"}


class InceptionExtractor(Extractor):
    """Pooled features of the network.

    Args:
        network: the network, with its weights.
        sha256: SHA-256 of the file.
        resize: "torch" or "clean", see the config.
        batch_size: pictures per forward pass.
    """

    def __init__(
        self, network: Inception2015, sha256: str, *, resize: str = "torch", batch_size: int = 32
    ) -> None:
        # convolutions on a CPU are 1.5 times as fast in this layout; features differ by rounding
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stub
        self._sha256, self._resize, self._batch_size = sha256, resize, batch_size

    @classmethod
    def load(
        cls, path: Path, sha256: str | None, *, resize: str, batch_size: int
    ) -> InceptionExtractor:
        """Read the file; see `InceptionConfig`."""
        step = f"get {FILE_NAME} from {PUBLISHED}"
        if not path.is_file():
            raise CheckpointError(
                str(path),
                f"there is no such file; its sha256 is {sha256}"
                if sha256
                else "there is no such file",
                step,
            )
        found = sha256_file(path)
        if sha256 is not None and found != sha256:
            raise CheckpointError(
                str(path),
                f"has the sha256 {found}, not {sha256}",
                f"{step}, or set sha256 to null to use other weights",
            )
        network = Inception2015()
        _fill(network, _tensors(path, step), path, step)
        return cls(network, found, resize=resize, batch_size=batch_size)

    @property
    def label(self) -> str:
        return LABELS[self._resize]

    @property
    def dimension(self) -> int:
        return NUM_FEATURES

    @property
    def fingerprint(self) -> str:
        return f"inception-2015 1 {self._resize} {self._sha256}"

    @torch.inference_mode()
    def _extract(self, pictures: Sequence[PixelArray]) -> FeatureArray:
        scale = _scaled_by_torch if self._resize == "torch" else _scaled_cleanly
        rows = []
        for start in range(0, len(pictures), self._batch_size):
            batch = [scale(one) for one in pictures[start : start + self._batch_size]]
            x_NCHW = torch.stack(batch).contiguous(memory_format=torch.channels_last)
            rows.append(self._network(x_NCHW).float().numpy())
        return np.concatenate(rows)


def _scaled_by_torch(pixels_HWC: PixelArray) -> Tensor:
    """Scale a picture as in pytorch-fid: float32 [3, 299, 299], -1 to 1."""
    x_CHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float() / 255
    x_NCHW = F.interpolate(x_CHW[None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * x_NCHW[0] - 1


def _scaled_cleanly(pixels_HWC: PixelArray) -> Tensor:
    """Scale a picture as in clean-fid: float32 [3, 299, 299], channels scaled as floats, (x - 128) / 128."""
    channels = []
    for channel in range(3):
        picture = Pillow.fromarray(pixels_HWC[:, :, channel].astype(np.float32))
        scaled = picture.resize((SIDE, SIDE), Pillow.Resampling.BICUBIC)
        channels.append(np.asarray(scaled).clip(0, 255))
    return (torch.from_numpy(np.stack(channels)) - 128) / 128


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a program next to its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [Path(name).parts for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return any("code" in one[:-1] or one[-1:] == ("constants.pkl",) for one in parts)


def _tensors(path: Path, step: str) -> dict[str, Tensor]:
    if _is_torchscript(path):
        raise CheckpointError(
            str(path),
            "is a TorchScript archive, such as NVIDIA's inception-2015-12-05.pt: its tensors can't be "
            "interpreted without the program in it, and programs in files are never run",
            f"{step}: it is the same network, and resize: clean scales as clean-fid does",
        )
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


def _fill(network: Inception2015, tensors: dict[str, Tensor], path: Path, step: str) -> None:
    """Load the weights; batch counters in the file are optional."""
    own = network.state_dict()
    missing = sorted(
        name
        for name, value in own.items()
        if not name.endswith("num_batches_tracked")
        and (name not in tensors or tensors[name].shape != value.shape)
    )
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        cause = (
            f"has no tensor {missing[0]!r} of the right shape"
            if missing
            else f"has the unknown tensor {unknown[0]!r}"
        )
        raise CheckpointError(str(path), f"{cause}; it is not the Inception of 2015", step)
    network.load_state_dict(tensors, strict=False)
