"""The network of `edsr`.

Source: EDSR (Lim et al. 2017, arXiv 1707.02921), section 3: residual blocks without batch normalisation, one skip around them
all, sub-pixel convolution (Shi et al. 2016). Two things are not EDSR's: the picture's bicubic interpolation is added at the end
(VDSR, Kim et al. 2016), so that an untrained network already enlarges; and one pixel shuffle goes from positions to large pixels
at once, so that no convolution runs at the large size.
Shape legend: B pictures, C channels, H W small pixels, Y X positions of the network.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cm3plugins.upscalers.edsr.config import EDSRArchitecture


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, 3, padding=1)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        delta_BCYX: Tensor = self.conv2(F.relu(self.conv1(x_BCYX)))
        return x_BCYX + delta_BCYX


class EDSR(nn.Module):
    """Small pictures [B, 3, H, W] in [0, 1] -> large ones [B, 3, scale * H, scale * W], not clamped. `patch_size` divides H, W.

    Args:
        arch: its shape.
    """

    def __init__(self, arch: EDSRArchitecture) -> None:
        super().__init__()
        self.arch = arch
        channels, patch = arch.num_channels, arch.patch_size
        self.head = nn.Conv2d(3 * patch**2, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(arch.num_blocks)))
        self.tail = nn.Conv2d(channels, 3 * (patch * arch.scale) ** 2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        assert self.tail.bias is not None
        nn.init.zeros_(self.tail.bias)

    @property
    def radius(self) -> int:
        """Small pixels around a patch that its large pixels depend on: at least 4, and bicubic interpolation looks at 2."""
        return self.arch.patch_size * (2 * self.arch.num_blocks + 2)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        # antialias=True is Pillow's cubic (a = -0.5), with weights that add up to one at the borders too.
        patch, scale = self.arch.patch_size, self.arch.scale
        smooth_BCHW = F.interpolate(pixels_BCHW, scale_factor=float(scale), mode="bicubic", antialias=True)
        x_BCYX = self.head(F.pixel_unshuffle(pixels_BCHW, patch) - 0.5)
        x_BCYX = x_BCYX + self.blocks(x_BCYX)
        return smooth_BCHW + F.pixel_shuffle(self.tail(x_BCYX), patch * scale)
