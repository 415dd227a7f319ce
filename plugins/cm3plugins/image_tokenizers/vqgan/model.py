"""The VQGAN network: encoder, vector quantiser, decoder.

Like taming-transformers' VQModel and Make-A-Scene's VQ-IMG. Module and parameter names are taming's;
`cm3published` reads its public checkpoints and others. Normalisations are GroupNorm or MoVQ's, which depends on the
latent of the codes.

Shape legend: B pictures, C channels, H W pixels, D code dimension (channels of the latent), Y X rows and columns of
the code grid, N = B * Y * X positions, K codebook entries.

Source: CompVis/taming-transformers `taming/modules/diffusionmodules/model.py` and
`taming/modules/vqvae/quantize.py` (layer recipe and names); Make-A-Scene (Gafni et al. 2022); CM3leon
(Yu et al. 2023), section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.image_tokenizers.vqgan.settings import VQGANArchitecture

#: Creates a normalisation for a number of channels.
NormOf = Callable[[int], nn.Module]


def group_norms(norm_groups: int) -> NormOf:
    """Return GroupNorm with taming's eps; narrow layers have as many groups as their channels allow."""
    return lambda channels: nn.GroupNorm(min(norm_groups, channels), channels, eps=1e-6)


class SpatialNorm(nn.Module):
    """GroupNorm, scaled and shifted at each position by the latent (MoVQ, arXiv:2209.09002, section 3.2). Names
    follow its code (ai-forever/MoVQGAN, `movq_modules.py`).

    Args:
        norm: the GroupNorm.
        latent_channels: channels of the code vectors.
    """

    def __init__(self, norm: nn.GroupNorm, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = norm
        self.conv_y = nn.Conv2d(latent_channels, norm.num_channels, 1)
        self.conv_b = nn.Conv2d(latent_channels, norm.num_channels, 1)

    def forward(self, x_BCHW: Tensor, latent_BDYX: Tensor) -> Tensor:
        """Normalise. The 1x1 convolution commutes with enlarging, so it runs first, which is cheaper."""
        scale_BCHW, shift_BCHW = (
            F.interpolate(conv(latent_BDYX), size=x_BCHW.shape[-2:], mode="nearest")
            for conv in (self.conv_y, self.conv_b)
        )
        out_BCHW: Tensor = self.norm_layer(x_BCHW) * scale_BCHW + shift_BCHW
        return out_BCHW


def spatial_norms(norm_groups: int, latent_channels: int) -> NormOf:
    """Return MoVQ's normalisation for a latent with this number of channels."""
    groups = group_norms(norm_groups)

    def make(channels: int) -> nn.Module:
        norm = groups(channels)
        assert isinstance(norm, nn.GroupNorm)
        return SpatialNorm(norm, latent_channels)

    return make


class ResnetBlock(nn.Module):
    """GroupNorm, swish, 3x3 convolution, twice, with a skip connection.

    [B, C_in, H, W] -> [B, C_out, H, W].
    """

    def __init__(self, in_channels: int, out_channels: int, norm: NormOf) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.has_shortcut = in_channels != out_channels

    def forward(self, x_BCHW: Tensor, *latent_BDYX: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW, *latent_BDYX)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW, *latent_BDYX)))
        skip_BCHW: Tensor = self.nin_shortcut(x_BCHW) if self.has_shortcut else x_BCHW
        out_BCHW: Tensor = skip_BCHW + h_BCHW
        return out_BCHW


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map, with a skip connection."""

    def __init__(self, channels: int, norm: NormOf) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor, *latent_BDYX: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW, *latent_BDYX)
        q_B1NC, k_B1NC, v_B1NC = (
            rearrange(proj(h_BCHW), "B C H W -> B 1 (H W) C") for proj in (self.q, self.k, self.v)
        )
        out_B1NC = F.scaled_dot_product_attention(q_B1NC, k_B1NC, v_B1NC)
        out_BCHW = rearrange(out_B1NC, "B 1 (H W) C -> B C H W", H=x_BCHW.shape[2])
        projected_BCHW: Tensor = self.proj_out(out_BCHW)
        return x_BCHW + projected_BCHW


class Downsample(nn.Module):
    """Halve height and width by a strided convolution; taming pads right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return out_BCHW


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return out_BCHW


class Middle(nn.Module):
    """Residual block, self-attention, residual block at the coarsest level."""

    def __init__(self, channels: int, norm: NormOf) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm)
        self.attn_1 = AttnBlock(channels, norm)
        self.block_2 = ResnetBlock(channels, channels, norm)

    def forward(self, x_BCHW: Tensor, *latent_BDYX: Tensor) -> Tensor:
        for layer in (self.block_1, self.attn_1, self.block_2):
            x_BCHW = layer(x_BCHW, *latent_BDYX)
        return x_BCHW


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention if `attend`.

    `resample` comes last: it halves or doubles the sides.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        norm: NormOf,
        *,
        attend: bool,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, norm) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(
            AttnBlock(channels, norm) for _ in range(num_blocks if attend else 0)
        )
        if resample == "down":
            self.downsample = Downsample(channels)
        if resample == "up":
            self.upsample = Upsample(channels)
        self.resample = resample

    def forward(self, h_BCHW: Tensor, *latent_BDYX: Tensor) -> Tensor:
        for j, block in enumerate(self.block):
            h_BCHW = block(h_BCHW, *latent_BDYX)
            if len(self.attn) > 0:
                h_BCHW = self.attn[j](h_BCHW, *latent_BDYX)
        if self.resample == "down":
            h_BCHW = self.downsample(h_BCHW)
        if self.resample == "up":
            h_BCHW = self.upsample(h_BCHW)
        return h_BCHW


class Encoder(nn.Module):
    """Pixels in [-1, 1], [B, 3, H, W] -> features [B, z_channels, H / f, W / f]."""

    def __init__(self, arch: VQGANArchitecture) -> None:
        super().__init__()
        norm = group_norms(arch.norm_groups)
        self.patch_size = arch.patch_size
        self.conv_in = nn.Conv2d(3 * arch.patch_size**2, arch.ch, 3, padding=1)
        self.down = nn.ModuleList()
        resolution, channels = arch.resolution // arch.patch_size, arch.ch
        for i, mult in enumerate(arch.ch_mult):
            self.down.append(
                Level(
                    channels,
                    arch.ch * mult,
                    arch.num_res_blocks,
                    norm,
                    attend=resolution in arch.attn_resolutions,
                    resample="down" if i != len(arch.ch_mult) - 1 else None,
                )
            )
            channels, resolution = arch.ch * mult, resolution // 2
        self.mid = Middle(channels, norm)
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, arch.z_channels, 3, padding=1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        if self.patch_size > 1:
            pixels_BCHW = F.pixel_unshuffle(pixels_BCHW, self.patch_size)
        h_BCHW = self.conv_in(pixels_BCHW)
        for level in self.down:
            h_BCHW = level(h_BCHW)
        features_BCYX: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h_BCHW))))
        return features_BCYX


class SquareEncoder(nn.Module):
    """Pixels in [-1, 1], [B, 3, H, W] <-> luminance and colour differences of each square, [B, 3 f^2, Y, X].
    It has no parameters: distances between features are distances between squares.

    Channels are in the order of `pixel_unshuffle`: channel, then row, then column of the square.
    """

    def __init__(self, arch: VQGANArchitecture) -> None:
        super().__init__()
        self.downsampling = arch.downsampling
        scale_33 = torch.diag(torch.tensor([1.0, arch.chroma_weight, arch.chroma_weight]))
        # ITU-R BT.601, as in JPEG
        self.forward_33: Tensor
        self.inverse_33: Tensor
        forward_33 = scale_33 @ torch.tensor(
            [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
        )
        self.register_buffer("forward_33", forward_33, persistent=False)
        self.register_buffer("inverse_33", torch.linalg.inv(forward_33), persistent=False)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        mixed_BCHW = torch.einsum("dc,bchw->bdhw", self.forward_33, pixels_BCHW)
        return F.pixel_unshuffle(mixed_BCHW, self.downsampling)

    def pixels(self, features_BDYX: Tensor) -> Tensor:
        """Inverse of `forward`."""
        mixed_BCHW = F.pixel_shuffle(features_BDYX, self.downsampling)
        return torch.einsum("cd,bdhw->bchw", self.inverse_33, mixed_BCHW)


class Decoder(nn.Module):
    """Features [B, z_channels, Y, X] -> pixels [B, 3, Y * f, X * f], about [-1, 1] (not clamped).

    `up` is indexed as in taming: entry 0 is the finest level, so the list runs backwards.

    Args:
        arch: the network's shape.
        norm: creates normalisations other than GroupNorm, which also receive the latent.
    """

    def __init__(self, arch: VQGANArchitecture, norm: NormOf | None = None) -> None:
        super().__init__()
        norm = norm or group_norms(arch.norm_groups)
        num_levels = len(arch.ch_mult)
        channels = arch.ch * arch.ch_mult[-1]
        resolution = arch.resolution // arch.downsampling
        self.patch_size = arch.patch_size
        self.conv_in = nn.Conv2d(arch.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, norm)
        self.up = nn.ModuleList()
        for i in reversed(range(num_levels)):
            self.up.insert(
                0,
                Level(
                    channels,
                    arch.ch * arch.ch_mult[i],
                    arch.num_res_blocks + 1,
                    norm,
                    attend=resolution in arch.attn_resolutions,
                    resample="up" if i != 0 else None,
                ),
            )
            channels, resolution = arch.ch * arch.ch_mult[i], resolution * 2
        self.norm_out = norm(channels)
        self.conv_out = nn.Conv2d(channels, 3 * arch.patch_size**2, 3, padding=1)

    def forward(self, features_BCYX: Tensor, *latent_BDYX: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(features_BCYX), *latent_BDYX)
        for level in reversed(self.up):
            h_BCHW = level(h_BCHW, *latent_BDYX)
        pixels_BCHW: Tensor = self.conv_out(F.silu(self.norm_out(h_BCHW, *latent_BDYX)))
        return F.pixel_shuffle(pixels_BCHW, self.patch_size) if self.patch_size > 1 else pixels_BCHW


@dataclass(frozen=True)
class Quantized:
    """Output of the quantiser.

    `z_q_BDYX`: quantised features, fp32; the gradient passes straight through to the encoder.
    `codes_BYX`: int64 indices in [0, K), [B, Y, X * k]. `loss`: codebook and commitment loss, a scalar (mean over
    elements).
    """

    z_q_BDYX: Tensor
    codes_BYX: Tensor
    loss: Tensor


class VectorQuantizer(nn.Module):
    """Nearest codebook entry by squared L2 distance, straight-through gradient; always fp32.

    With `l2_normalize`, features and entries are first projected onto the unit sphere (ViT-VQGAN,
    LlamaGen). With `learn_codebook=False` the entries get no gradient: the trainer moves them by
    exponential moving averages. Loss: ||z_q - sg(z)||^2 + beta * ||sg(z_q) - z||^2 (VQ-VAE, eq. 3).
    taming's "legacy" code has a known bug that puts beta on the other term; it affects only training,
    not checkpoints.

    With `depth` k, the codebook has k parts of S entries, and a position is the sum of one entry of each: the nearest
    entry of the first, of the second the nearest to what is left, and so on (RQ-VAE, arXiv:2203.01941).
    """

    def __init__(
        self, codebook_size: int, embed_dim: int, beta: float, l2_normalize: bool, depth: int = 1
    ) -> None:
        super().__init__()
        self.beta, self.l2_normalize, self.depth = beta, l2_normalize, depth
        self.learn_codebook = True
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def entries(self) -> Tensor:
        """Return the code vectors as compared, fp32 [K, D]."""
        weight_KD = self.embedding.weight.float()
        return F.normalize(weight_KD, dim=-1) if self.l2_normalize else weight_KD

    def nearest(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return the index of the nearest entry for each row, [N] int64.

        ||z||^2 is left out: it is the same for all entries.
        """
        distance_NK = torch.addmm((codebook_KD**2).sum(1), z_ND, codebook_KD.t(), alpha=-2.0)
        return distance_NK.argmin(dim=1)

    def codes_of_rows(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """Return the codes of each row, [N, k] int64."""
        found, left_ND, size = [], z_ND, len(codebook_KD) // self.depth
        for stage, entries_SD in enumerate(codebook_KD.split(size)):
            chosen_N = self.nearest(left_ND, entries_SD)
            found.append(chosen_N + stage * size if stage else chosen_N)
            if stage + 1 < self.depth:
                left_ND = left_ND - entries_SD[chosen_N]
        return torch.stack(found, dim=1) if self.depth > 1 else found[0][:, None]

    def added(self, codes: Tensor, codebook_KD: Tensor) -> Tensor:
        """The sum of the entries of each place: codes [..., k] -> [..., D]."""
        if self.depth == 1:  # fewer launches
            return F.embedding(codes[..., 0], codebook_KD)
        return F.embedding(codes, codebook_KD).sum(-2)

    def forward(self, z_BDYX: Tensor) -> Quantized:
        with torch.autocast(z_BDYX.device.type, enabled=False):
            z_BDYX = z_BDYX.float()
            if self.l2_normalize:
                z_BDYX = F.normalize(z_BDYX, dim=1)
            codebook_KD = self.entries()
            z_ND = rearrange(z_BDYX, "B D Y X -> (B Y X) D")
            codes_Nk = self.codes_of_rows(z_ND.detach(), codebook_KD.detach())
            z_q_ND = self.added(codes_Nk, codebook_KD)
            loss = self.beta * F.mse_loss(z_ND, z_q_ND.detach())
            if self.learn_codebook:
                loss = loss + F.mse_loss(z_q_ND, z_ND.detach())
            B, _, Y, X = z_BDYX.shape
            z_q_BDYX = rearrange(z_q_ND.detach(), "(B Y X) D -> B D Y X", B=B, Y=Y, X=X)
            z_q_BDYX = z_BDYX + (z_q_BDYX - z_BDYX).detach()
            codes_BYX = rearrange(codes_Nk, "(B Y X) k -> B Y (X k)", B=B, Y=Y, X=X)
        return Quantized(z_q_BDYX, codes_BYX, loss)

    def lookup(self, codes_BYX: Tensor) -> Tensor:
        """Add up the codebook entries of each place: int64 [B, Y, X * k] -> fp32 [B, D, Y, X]."""
        codes_BYXk = rearrange(codes_BYX, "B Y (X k) -> B Y X k", k=self.depth)
        return rearrange(self.added(codes_BYXk, self.entries()), "B Y X D -> B D Y X")


class VQModel(nn.Module):
    """Encoder, 1x1 `quant_conv`, quantiser, 1x1 `post_quant_conv`, decoder.

    Same keys as taming's VQModel.
    """

    def __init__(self, arch: VQGANArchitecture) -> None:
        super().__init__()
        self.arch = arch
        self.has_squares = arch.encoder == "squares"
        self.encoder = SquareEncoder(arch) if self.has_squares else Encoder(arch)
        self.decoder = Decoder(arch)
        if self.has_squares:
            # training starts from the pixels of the codes
            nn.init.zeros_(self.decoder.conv_out.weight)
            assert self.decoder.conv_out.bias is not None
            nn.init.zeros_(self.decoder.conv_out.bias)
        self.quantize = VectorQuantizer(
            arch.codebook_size, arch.embed_dim, arch.beta, arch.l2_normalize_codes, arch.depth
        )
        if not self.has_squares:
            self.quant_conv = nn.Conv2d(arch.z_channels, arch.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, 1)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Map pixels in [-1, 1] [B, 3, H, W] to features before the quantiser [B, D, Y, X]."""
        features_BDYX: Tensor = self.encoder(pixels_BCHW)
        return features_BDYX if self.has_squares else self.quant_conv(features_BDYX)

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Encode pixels in [-1, 1] [B, 3, H, W] as codes, int64 [B, H / f, W / f * k]."""
        quantized: Quantized = self.quantize(self.features(pixels_BCHW))
        return quantized.codes_BYX

    def entries(self) -> Tensor:
        """Return the code vectors as compared, fp32 [K, D]."""
        return self.quantize.entries()

    def decode_features(self, z_q_BDYX: Tensor) -> Tensor:
        """Decode quantised features [B, D, Y, X] to pixels [B, 3, H, W], about [-1, 1]."""
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(z_q_BDYX))
        if isinstance(self.encoder, SquareEncoder):
            return self.encoder.pixels(z_q_BDYX) + pixels_BCHW
        return pixels_BCHW

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Decode codes, int64 [B, Y, X * k], to pixels [B, 3, H, W], about [-1, 1]."""
        return self.decode_features(self.quantize.lookup(codes_BYX))

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct pixels in [-1, 1] [B, 3, H, W]; returns (pixels, quantiser output)."""
        quantized = self.quantize(self.features(pixels_BCHW))
        return self.decode_features(quantized.z_q_BDYX), quantized
