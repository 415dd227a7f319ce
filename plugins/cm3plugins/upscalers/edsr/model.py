"""The network of `edsr`.

Source: EDSR (Lim et al. 2017, arXiv 1707.02921), section 3: residual blocks without batch
normalisation, one skip around them all, sub-pixel convolution (Shi et al. 2016). Three things are
not from EDSR. The picture's bicubic interpolation is added at the end (VDSR, Kim et al. 2016), so
an untrained network already upscales. Nothing else is added where the picture is flat (`contrast`),
so colours are preserved, even those unseen in training. And a single pixel shuffle goes from small
to large pixels, so no convolution runs at the large size. Shape legend: B pictures, C channels, H W
small pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cm3plugins.upscalers.edsr.settings import EDSRArchitecture


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        delta_BCHW: Tensor = self.conv2(F.relu(self.conv1(x_BCHW)))
        return x_BCHW + delta_BCHW


def contrast(pixels_BCHW: Tensor) -> Tensor:
    """Local contrast of a picture, [B, 1, H, W] in 0..1.

    0 where the surrounding 5 x 5 pixels (the support of bicubic interpolation) are equal, 1 where
    they differ by two levels of 255 or more in some channel, 0.5 for one level.
    """
    lightest_BCHW, darkest_BCHW = (
        F.max_pool2d(pixels_BCHW, 5, 1, 2),
        -F.max_pool2d(-pixels_BCHW, 5, 1, 2),
    )
    return ((lightest_BCHW - darkest_BCHW).amax(1, keepdim=True) * (255 / 2)).clamp(max=1.0)


class EDSR(nn.Module):
    """Small pictures [B, 3, H, W] in [0, 1] -> large [B, 3, scale * H, scale * W], not clamped.

    Args:
        arch: its shape.
    """

    def __init__(self, arch: EDSRArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.head = nn.Conv2d(3, arch.num_channels, 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(arch.num_channels) for _ in range(arch.num_blocks))
        )
        self.tail = nn.Conv2d(arch.num_channels, 3 * arch.scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    @property
    def radius(self) -> int:
        """Receptive field in small pixels: at least 4; bicubic interpolation needs 2."""
        return 2 * self.arch.num_blocks + 2

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        # antialias=True is Pillow's cubic (a = -0.5), with weights that add up to one at the
        # borders too.
        smooth_BCHW = F.interpolate(
            pixels_BCHW, scale_factor=float(self.arch.scale), mode="bicubic", antialias=True
        )
        x_BCHW = self.head(pixels_BCHW - 0.5)
        x_BCHW = x_BCHW + self.blocks(x_BCHW)
        return smooth_BCHW + F.pixel_shuffle(
            self.tail(x_BCHW) * contrast(pixels_BCHW), self.arch.scale
        )
