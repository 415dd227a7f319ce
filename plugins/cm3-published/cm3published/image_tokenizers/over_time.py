"""Emu3's layers over time, for still pictures: the encoder sees one picture several times over.

Emu3 (arXiv:2409.18869), section 2.1; names are those of baaivision/Emu3,
`emu3/tokenizer/modeling_emu3visionvq.py`. Convolutions over time see no later frame, and a still
picture is decoded to its first frame: neither the frames after it nor the picture's copies have to go
through the layers of a picture.

Legend: B pictures, C channels, T frames, Y X code grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3plugins.image_tokenizers.vqgan.model import Decoder, Encoder
from cm3plugins.image_tokenizers.vqgan.norms import spatial_norms
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture


class CausalConv(nn.Module):
    """A convolution over time and space that sees two earlier frames and no later ones."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=(stride, 1, 1),
            padding=(0, kernel[1] // 2, kernel[2] // 2),
        )

    def forward(self, x_BCTYX: Tensor) -> Tensor:
        """[B, C_in, T, Y, X] -> [B, C_out, (T + 2 - kernel) / stride + 1, Y, X]."""
        out_BCTYX: Tensor = self.conv(F.pad(x_BCTYX, (0, 0, 0, 0, 2, 0)))
        return out_BCTYX


class StillConv(CausalConv):
    """1x1 in space, of one frame: Emu3's `quant_conv` and `post_quant_conv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 1, 1))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """[B, C_in, Y, X] -> [B, C_out, Y, X]."""
        return super().forward(x_BCYX[:, :, None])[:, :, 0]


class Resampling(nn.Module):
    """A convolution over time below the name that the files have for it."""

    def __init__(self, channels: int, frames: int, stride: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, (frames, 3, 3), stride)

    def forward(self, x_BCTYX: Tensor) -> Tensor:
        return F.silu(self.conv(x_BCTYX))


class BatchNorm(nn.Module):
    """BatchNorm by the file's statistics, without torch's count of the batches that they are of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCTYX: Tensor) -> Tensor:
        return F.batch_norm(
            x_BCTYX, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5
        )


class TimeBlock(nn.Module):
    """BatchNorm, swish, convolution, twice, with a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = BatchNorm(channels), BatchNorm(channels)
        self.conv1 = CausalConv(channels, channels, (3, 3, 3))
        self.conv2 = CausalConv(channels, channels, (3, 3, 3))

    def forward(self, x_BCTYX: Tensor) -> Tensor:
        h_BCTYX = self.conv1(F.silu(self.norm1(x_BCTYX)))
        h_BCTYX = self.conv2(F.silu(self.norm2(h_BCTYX)))
        out_BCTYX: Tensor = x_BCTYX + h_BCTYX
        return out_BCTYX


class StillEncoder(Encoder):
    """`Encoder`, whose features of one picture are those of a video that stands still.

    Args:
        arch: the network's shape.
        halvings: of the number of frames, until one is left.
    """

    def __init__(self, arch: VQGANArchitecture, halvings: int) -> None:
        super().__init__(arch)
        z = arch.z_channels
        self.time_conv = nn.ModuleList(Resampling(z, 4, 2) for _ in range(halvings))
        self.time_res_stack = nn.Sequential(*(TimeBlock(z) for _ in range(arch.num_res_blocks)))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        frames = 2 ** len(self.time_conv)
        h_BCTYX = super().forward(pixels_BCHW)[:, :, None].expand(-1, -1, frames, -1, -1)
        for halve in self.time_conv:
            h_BCTYX = halve(h_BCTYX)
        still_BCYX: Tensor = self.time_res_stack(h_BCTYX)[:, :, 0]
        return still_BCYX


class StillDecoder(Decoder):
    """`Decoder` of the first frame; the latent that its norms see goes through time as features do."""

    def __init__(self, arch: VQGANArchitecture, halvings: int) -> None:
        super().__init__(arch, spatial_norms(arch.norm_groups, arch.embed_dim))
        z = arch.z_channels
        self.time_res_stack = nn.Sequential(*(TimeBlock(z) for _ in range(arch.num_res_blocks)))
        self.time_conv = nn.ModuleList(Resampling(z, 3, 1) for _ in range(halvings))

    def forward(self, features_BCYX: Tensor, *latent_BDYX: Tensor) -> Tensor:
        both_BCTYX = torch.cat([features_BCYX, *latent_BDYX])[:, :, None]
        both_BCTYX = self.time_res_stack(both_BCTYX)
        # each layer doubles the frames first: the first frame stays the first
        for layer in self.time_conv:
            both_BCTYX = layer(both_BCTYX)
        features_BCYX, latent = both_BCTYX[:, :, 0].chunk(2)
        return super().forward(features_BCYX, latent)
