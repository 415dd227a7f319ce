"""The network of published tokenizers: the VQGAN's encoder and decoder with one of four quantisers.

MoVQGAN's decoder has norms that depend on the latent; Emu3's also has layers over time (arXiv:2409.18869, section 2.1;
names follow baaivision/Emu3, `emu3/tokenizer/modeling_emu3visionvq.py`). Convolutions over time see no later frame, its
encoder sees a still picture repeated several times, and a still picture is decoded to its first frame: neither later
frames nor the picture's copies need to pass through the layers of a picture.

Legend: B pictures, C channels, T frames, H W pixels, D code dimension, Y X code grid, K codebook entries, N positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.image_tokenizers.vqgan.model import Decoder, Encoder, VectorQuantizer, spatial_norms
from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture
from cm3published.image_tokenizers.names import Sizes


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
        """Map [B, C_in, T, Y, X] to [B, C_out, (T + 2 - kernel) / stride + 1, Y, X]."""
        out_BCTYX: Tensor = self.conv(F.pad(x_BCTYX, (0, 0, 0, 0, 2, 0)))
        return out_BCTYX


class StillConv(CausalConv):
    """A 1x1 convolution of one frame: Emu3's `quant_conv` and `post_quant_conv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, (3, 1, 1))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        """Map [B, C_in, Y, X] to [B, C_out, Y, X]."""
        return super().forward(x_BCYX[:, :, None])[:, :, 0]


class Resampling(nn.Module):
    """A convolution over time, under its name in the files."""

    def __init__(self, channels: int, frames: int, stride: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, (frames, 3, 3), stride)

    def forward(self, x_BCTYX: Tensor) -> Tensor:
        return F.silu(self.conv(x_BCTYX))


class BatchNorm(nn.Module):
    """BatchNorm with the file's statistics, without torch's batch counter."""

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
    """An `Encoder` that encodes a picture as a still video.

    Args:
        arch: architecture of the network.
        halvings: number of halvings of the frames, until one is left.
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
    """A `Decoder` of the first frame; the latent of its norms passes through time like the features."""

    def __init__(self, arch: VQGANArchitecture, halvings: int) -> None:
        super().__init__(arch, spatial_norms(arch.norm_groups, arch.embed_dim))
        z = arch.z_channels
        self.time_res_stack = nn.Sequential(*(TimeBlock(z) for _ in range(arch.num_res_blocks)))
        self.time_conv = nn.ModuleList(Resampling(z, 3, 1) for _ in range(halvings))

    def forward(self, features_BCYX: Tensor, *latent_BDYX: Tensor) -> Tensor:
        both_BCTYX = torch.cat([features_BCYX, *latent_BDYX])[:, :, None]
        both_BCTYX = self.time_res_stack(both_BCTYX)
        # each layer first doubles the frames: the first frame stays first
        for layer in self.time_conv:
            both_BCTYX = layer(both_BCTYX)
        features_BCYX, latent = both_BCTYX[:, :, 0].chunk(2)
        return super().forward(features_BCYX, latent)


#: Number of inner products with code vectors in memory at a time: there are up to 262,144 vectors.
_PRODUCTS = 2**25


class GumbelQuantizer(nn.Module):
    """Takes the code with the largest logit: taming's GumbelVQ without its training noise.

    taming's own forward pass also adds the noise in evaluation, so its codes are random.
    """

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(embed_dim, num_codes, 1)
        self.embed = nn.Embedding(num_codes, embed_dim)

    def codes(self, z_BDYX: Tensor) -> Tensor:
        """Map features to codes, int64 [B, Y, X]."""
        logits_BKYX: Tensor = self.proj(z_BDYX)
        return logits_BKYX.argmax(dim=1)

    def entries(self) -> Tensor:
        """Return the code vectors, fp32 [K, D]."""
        return self.embed.weight

    def lookup(self, codes_BYX: Tensor) -> Tensor:
        """Return the code vectors of a grid, fp32 [B, D, Y, X]."""
        return rearrange(F.embedding(codes_BYX, self.entries()), "B Y X D -> B D Y X")


class NearestQuantizer(VectorQuantizer):
    """Takes the nearest code, optionally on the unit sphere; see `VectorQuantizer`."""

    def codes(self, z_BDYX: Tensor) -> Tensor:
        """Map features to codes, int64 [B, Y, X]."""
        codes_BYX: Tensor = self(z_BDYX).codes_BYX
        return codes_BYX


class DotQuantizer(NearestQuantizer):
    """Takes the code with the largest inner product (IBQ, Shi et al. 2024, arXiv:2412.02692, equation 3)."""

    def nearest(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        parts = z_ND.split(max(1, _PRODUCTS // len(codebook_KD)))
        return torch.cat([(part @ codebook_KD.T).argmax(dim=1) for part in parts])


class PublicVQ(nn.Module):
    """Encoder, 1x1 `quant_conv`, quantiser, 1x1 `post_quant_conv`, decoder, with taming's names.

    Args:
        sizes: from `sizes_of`.
        quantizer: see `Published`.
    """

    def __init__(self, sizes: Sizes, quantizer: str) -> None:
        super().__init__()
        arch = sizes.arch
        K, D, z = arch.codebook_size, arch.embed_dim, arch.z_channels
        self.latent_norms = sizes.network != "vqgan"
        self.quant_conv: nn.Module
        self.post_quant_conv: nn.Module
        if sizes.network == "emu3":
            self.encoder: Encoder = StillEncoder(arch, sizes.halvings)
            self.decoder: Decoder = StillDecoder(arch, sizes.halvings)
            self.quant_conv, self.post_quant_conv = StillConv(z, D), StillConv(D, z)
        else:
            norm = spatial_norms(arch.norm_groups, D) if self.latent_norms else None
            self.encoder, self.decoder = Encoder(arch), Decoder(arch, norm)
            self.quant_conv, self.post_quant_conv = nn.Conv2d(z, D, 1), nn.Conv2d(D, z, 1)
        if sizes.gumbel:
            self.quantize: GumbelQuantizer | NearestQuantizer = GumbelQuantizer(K, D)
        else:
            kind = DotQuantizer if quantizer == "dot" else NearestQuantizer
            self.quantize = kind(K, D, arch.beta, quantizer == "l2_normalized")

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Map pixels in [-1, 1] [B, 3, H, W] to features before the quantiser [B, D, Y, X]."""
        features_BDYX: Tensor = self.quant_conv(self.encoder(pixels_BCHW))
        return features_BDYX

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] [B, 3, H, W] as codes, int64 [B, Y, X]."""
        return self.quantize.codes(self.features(pixels_BCHW))

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Decode codes, int64 [B, Y, X], to pixels [B, 3, H, W], about [-1, 1]."""
        latent_BDYX = self.quantize.lookup(codes_BYX)
        seen = (latent_BDYX,) if self.latent_norms else ()
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(latent_BDYX), *seen)
        return pixels_BCHW

    def entries(self) -> Tensor:
        """Return the code vectors, fp32 [K, D]; on the unit sphere if they are compared there."""
        return self.quantize.entries()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Reconstruct pictures."""
        return self.decode(self.encode(pixels_BCHW))


def empty(sizes: Sizes, quantizer: str) -> PublicVQ:
    """Return a network on the meta device, for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return PublicVQ(sizes, quantizer)
