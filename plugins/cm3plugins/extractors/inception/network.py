"""The network: Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) as TensorFlow's graph of 2015-12-05
has it, with the tensor names of the file that pytorch-fid publishes.

It differs from torchvision's Inception v3: average pools don't count their padding, the last block
pools by maximum, there are 1,008 classes and no auxiliary head. Legend: N pictures, C channels, H x W.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    """8 x 8: 1x1, 3x3 as 1x3 beside 3x1, the same after another 3x3, pool.

    Args:
        num_in: channels.
        by_maximum: how it pools; the graph of 2015 has one block of each.
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
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)  # of the file; features end before it

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_NCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled: Tensor = x.mean((2, 3))
        return pooled
