"""The network of published tokenizers: the VQGAN's encoder and decoder around one of four quantisers.

MoVQGAN's decoder has norms that see the latent, Emu3's has layers over time as well.

Legend: B pictures, H W pixels, D code dimension, Y X code grid, K codebook entries, N positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.image_tokenizers.vqgan.model import Decoder, Encoder, VectorQuantizer
from cm3plugins.image_tokenizers.vqgan.norms import spatial_norms
from cm3published.image_tokenizers.names import Sizes
from cm3published.image_tokenizers.over_time import StillConv, StillDecoder, StillEncoder

#: Inner products with code vectors that are in memory at a time: there are up to 262,144 vectors.
_PRODUCTS = 2**25


class GumbelQuantizer(nn.Module):
    """The code of the largest logit: taming's GumbelVQ without the noise of its training.

    taming's own forward adds that noise in evaluation too, so that its codes are random.
    """

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(embed_dim, num_codes, 1)
        self.embed = nn.Embedding(num_codes, embed_dim)

    def codes(self, z_BDYX: Tensor) -> Tensor:
        """Features -> codes, int64 [B, Y, X]."""
        logits_BKYX: Tensor = self.proj(z_BDYX)
        return logits_BKYX.argmax(dim=1)

    def entries(self) -> Tensor:
        """The code vectors, fp32 [K, D]."""
        return self.embed.weight

    def lookup(self, codes_BYX: Tensor) -> Tensor:
        """Code vectors of a grid, fp32 [B, D, Y, X]."""
        return rearrange(F.embedding(codes_BYX, self.entries()), "B Y X D -> B D Y X")


class NearestQuantizer(VectorQuantizer):
    """The nearest code, also on the unit sphere; see `VectorQuantizer`."""

    def codes(self, z_BDYX: Tensor) -> Tensor:
        """Features -> codes, int64 [B, Y, X]."""
        codes_BYX: Tensor = self(z_BDYX).codes_BYX
        return codes_BYX


class DotQuantizer(NearestQuantizer):
    """The code of the largest inner product (IBQ, Shi et al. 2024, arXiv:2412.02692, equation 3)."""

    def nearest(self, z_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        parts = z_ND.split(max(1, _PRODUCTS // len(codebook_KD)))
        return torch.cat([(part @ codebook_KD.T).argmax(dim=1) for part in parts])


class PublicVQ(nn.Module):
    """Encoder, 1x1 `quant_conv`, quantiser, 1x1 `post_quant_conv`, decoder, under taming's names.

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
        """Pixels in [-1, 1] [B, 3, H, W] -> features before the quantiser [B, D, Y, X]."""
        features_BDYX: Tensor = self.quant_conv(self.encoder(pixels_BCHW))
        return features_BDYX

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] [B, 3, H, W] -> codes, int64 [B, Y, X]."""
        return self.quantize.codes(self.features(pixels_BCHW))

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Codes, int64 [B, Y, X] -> pixels [B, 3, H, W], about [-1, 1]."""
        latent_BDYX = self.quantize.lookup(codes_BYX)
        seen = (latent_BDYX,) if self.latent_norms else ()
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(latent_BDYX), *seen)
        return pixels_BCHW

    def entries(self) -> Tensor:
        """The code vectors, fp32 [K, D]; on the unit sphere if they are compared there."""
        return self.quantize.entries()

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Reconstruct pictures."""
        return self.decode(self.encode(pixels_BCHW))


def empty(sizes: Sizes, quantizer: str) -> PublicVQ:
    """The network without memory for its tensors, for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return PublicVQ(sizes, quantizer)
