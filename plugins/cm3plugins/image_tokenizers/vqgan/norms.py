"""Normalisations of VQ networks: GroupNorm, and MoVQ's, which sees the latent of the codes.

Legend: B pictures, C channels, H W pixels, D channels of the latent, Y X code grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

#: Makes the normalisation of so many channels.
NormOf = Callable[[int], nn.Module]


def group_norms(norm_groups: int) -> NormOf:
    """GroupNorm with taming's eps; narrow layers have as many groups as channels allow."""
    return lambda channels: nn.GroupNorm(min(norm_groups, channels), channels, eps=1e-6)


class SpatialNorm(nn.Module):
    """GroupNorm, scaled and shifted by what the latent says of each place (MoVQ, arXiv:2209.09002,
    section 3.2). Names are those of its code (ai-forever/MoVQGAN, `movq_modules.py`).

    Args:
        norm: the GroupNorm.
        latent_channels: of the code vectors.
    """

    def __init__(self, norm: nn.GroupNorm, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = norm
        self.conv_y = nn.Conv2d(latent_channels, norm.num_channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, norm.num_channels, 1)

    def forward(self, x_BCHW: Tensor, latent_BDYX: Tensor) -> Tensor:
        """Normalise; a 1x1 convolution is the same before and after enlarging, and cheaper before."""
        scale_BCHW, shift_BCHW = (
            F.interpolate(conv(latent_BDYX), size=x_BCHW.shape[-2:], mode="nearest")
            for conv in (self.conv_y, self.conv_b)
        )
        out_BCHW: Tensor = self.norm_layer(x_BCHW) * scale_BCHW + shift_BCHW
        return out_BCHW


def spatial_norms(norm_groups: int, latent_channels: int) -> NormOf:
    """MoVQ's normalisation, by a latent of so many channels."""
    groups = group_norms(norm_groups)

    def make(channels: int) -> nn.Module:
        norm = groups(channels)
        assert isinstance(norm, nn.GroupNorm)
        return SpatialNorm(norm, latent_channels)

    return make
