"""CLIP's two towers in plain torch: a vision transformer, and a causal transformer over text.

Parameters have OpenAI's names, which open_clip shares, so files of both load without renaming.
Legend: N pictures or texts, T tokens, D width of a tower, H heads of width d, R side of a picture,
Y X rows and columns of its patches, E dimension of the shared space. Source: Radford et al. 2021,
section 2.4; openai/CLIP `clip/model.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

Activation = Literal["quick_gelu", "gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """Apply OpenAI's approximation of GELU.

    >>> quick_gelu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8458])
    """
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of one tower's transformer.

    Args:
        width: D.
        num_layers: blocks.
        num_heads: H.
        mlp_width: hidden width of a block's MLP.
        activation: activation of the MLP.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: Activation


@dataclass(frozen=True)
class CLIPSizes:
    """Sizes of both towers.

    Args:
        vision, text: sizes of their transformers.
        resolution: R.
        patch: side of a patch in pixels; R is a multiple of it.
        vocab_size: number of text ids.
        context_length: maximum number of tokens of a text, including start and end.
        dimension: E.
    """

    vision: TransformerSizes
    text: TransformerSizes
    resolution: int
    patch: int
    vocab_size: int
    context_length: int
    dimension: int


class Attention(nn.Module):
    """Multi-head self-attention.

    Query, key and value share one matrix, as in `nn.MultiheadAttention`.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_NTD: Tensor, causal: bool) -> Tensor:
        joined = F.linear(x_NTD, self.in_proj_weight, self.in_proj_bias)
        q_NHTd, k_NHTd, v_NHTd = rearrange(
            joined, "N T (three H d) -> three N H T d", three=3, H=self.num_heads
        )
        seen_NHTd = F.scaled_dot_product_attention(q_NHTd, k_NHTd, v_NHTd, is_causal=causal)
        out_NTD: Tensor = self.out_proj(rearrange(seen_NHTd, "N H T d -> N T (H d)"))
        return out_NTD


class MLP(nn.Module):
    """Two linear maps with the activation between them."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.c_fc, self.c_proj = (
            nn.Linear(sizes.width, sizes.mlp_width),
            nn.Linear(sizes.mlp_width, sizes.width),
        )
        self.activation = ACTIVATIONS[sizes.activation]

    def forward(self, x_NTD: Tensor) -> Tensor:
        out_NTD: Tensor = self.c_proj(self.activation(self.c_fc(x_NTD)))
        return out_NTD


class Block(nn.Module):
    """Attention, then an MLP, each preceded by a LayerNorm and with a residual connection."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(sizes.width), Attention(sizes.width, sizes.num_heads)
        self.ln_2, self.mlp = nn.LayerNorm(sizes.width), MLP(sizes)

    def forward(self, x_NTD: Tensor, causal: bool) -> Tensor:
        x_NTD = x_NTD + self.attn(self.ln_1(x_NTD), causal)
        out_NTD: Tensor = x_NTD + self.mlp(self.ln_2(x_NTD))
        return out_NTD


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(sizes) for _ in range(sizes.num_layers))

    def forward(self, x_NTD: Tensor, *, causal: bool) -> Tensor:
        for block in self.resblocks:
            x_NTD = block(x_NTD, causal)
        return x_NTD


class VisionTower(nn.Module):
    """A vision transformer on patches and a class token; returns the class token's projected last state."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        width, num_patches = sizes.vision.width, (sizes.resolution // sizes.patch) ** 2
        self.conv1 = nn.Conv2d(3, width, sizes.patch, sizes.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + num_patches, width))
        self.ln_pre, self.transformer, self.ln_post = (
            nn.LayerNorm(width),
            Transformer(sizes.vision),
            nn.LayerNorm(width),
        )
        self.proj = nn.Parameter(torch.zeros(width, sizes.dimension))

    def forward(self, pixels_N3RR: Tensor) -> Tensor:
        """Return vectors [N, E] of pictures prepared by `Preprocessing`."""
        patches_NTD = rearrange(self.conv1(pixels_N3RR), "N D Y X -> N (Y X) D")
        first_N1D = repeat(self.class_embedding, "D -> N 1 D", N=len(pixels_N3RR))
        x_NTD = self.ln_pre(torch.cat([first_N1D, patches_NTD], dim=1) + self.positional_embedding)
        vectors_NE: Tensor = self.ln_post(self.transformer(x_NTD, causal=False)[:, 0]) @ self.proj
        return vectors_NE


class CLIPTowers(nn.Module):
    """The vision tower as `visual`; the text tower under OpenAI's names, without a prefix."""

    def __init__(self, sizes: CLIPSizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.text.width
        self.visual = VisionTower(sizes)
        self.token_embedding = nn.Embedding(sizes.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(sizes.context_length, width))
        self.transformer, self.ln_final = Transformer(sizes.text), nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, sizes.dimension))

    def encode_texts(self, ids_NT: Tensor, last_N: Tensor) -> Tensor:
        """Return vectors [N, E] of token ids; `last_N` is the position of each text's end token.

        Tokens after it are ignored.
        """
        x_NTD = self.transformer(
            self.token_embedding(ids_NT) + self.positional_embedding[: ids_NT.shape[1]], causal=True
        )
        last_ND = self.ln_final(x_NTD[torch.arange(len(ids_NT), device=ids_NT.device), last_N])
        vectors_NE: Tensor = last_ND @ self.text_projection
        return vectors_NE
