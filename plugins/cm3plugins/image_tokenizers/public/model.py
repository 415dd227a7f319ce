"""The network of published tokenizers: the VQGAN's encoder and decoder around one of three quantisers.

Legend: B pictures, H W pixels, D code dimension, Y X code grid, K codebook entries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.image_tokenizers.public.names import Sizes
from cm3plugins.image_tokenizers.vqgan.model import Decoder, Encoder, VectorQuantizer


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


class PublicVQ(nn.Module):
    """Encoder, 1x1 `quant_conv`, quantiser, 1x1 `post_quant_conv`, decoder, under taming's names.

    Args:
        sizes: from `sizes_of`.
        l2_normalize: compare codes on the unit sphere.
    """

    def __init__(self, sizes: Sizes, *, l2_normalize: bool) -> None:
        super().__init__()
        arch = sizes.arch
        self.encoder, self.decoder = Encoder(arch), Decoder(arch)
        self.quantize = (
            GumbelQuantizer(arch.codebook_size, arch.embed_dim)
            if sizes.gumbel
            else NearestQuantizer(arch.codebook_size, arch.embed_dim, arch.beta, l2_normalize)
        )
        self.quant_conv = nn.Conv2d(arch.z_channels, arch.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, 1)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] [B, 3, H, W] -> features before the quantiser [B, D, Y, X]."""
        features_BDYX: Tensor = self.quant_conv(self.encoder(pixels_BCHW))
        return features_BDYX

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Pixels in [-1, 1] [B, 3, H, W] -> codes, int64 [B, Y, X]."""
        return self.quantize.codes(self.features(pixels_BCHW))

    def decode(self, codes_BYX: Tensor) -> Tensor:
        """Codes, int64 [B, Y, X] -> pixels [B, 3, H, W], about [-1, 1]."""
        pixels_BCHW: Tensor = self.decoder(self.post_quant_conv(self.quantize.lookup(codes_BYX)))
        return pixels_BCHW

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Reconstruct pictures."""
        return self.decode(self.encode(pixels_BCHW))


def empty(sizes: Sizes, *, l2_normalize: bool) -> PublicVQ:
    """The network without memory for its tensors, for `load_state_dict(..., assign=True)`."""
    with torch.device("meta"):
        return PublicVQ(sizes, l2_normalize=l2_normalize)
