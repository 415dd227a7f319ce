"""One block of the Llama-style decoder: attention and SwiGLU, and their norms.

Legend: B rows, T tokens, H query heads, K key heads, D head dimension, E model dimension, F
feed-forward dimension, G norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.decoders.joined import projections
from cm3plugins.decoders.llama.rotary import rotated
from cm3plugins.decoders.llama.settings import LlamaSettings
from cm3plugins.decoders.transformer import Context


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), in float32 or wider, times a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight.to(x.dtype)


class HeadNorm(nn.Module):
    """Normalisation of queries or keys [..., heads, D] over D; each of G norms has its own heads."""

    def __init__(self, num_heads: int, config: LlamaSettings) -> None:
        super().__init__()
        groups, size = config.norm_groups(num_heads), config.head_size
        self.repeats, self.eps = num_heads // groups, config.norm_eps
        self.weight = nn.Parameter(torch.ones(groups, size))
        self.bias = (
            nn.Parameter(torch.zeros(groups, size)) if config.qk_norm == "layer_norm" else None
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.bias is None:
            wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
            return wide.to(x.dtype) * self._of_heads(self.weight).to(x.dtype)
        wide = F.layer_norm(wide, wide.shape[-1:], eps=self.eps)
        weight, bias = self._of_heads(self.weight), self._of_heads(self.bias)
        return wide.to(x.dtype) * weight.to(x.dtype) + bias.to(x.dtype)

    def _of_heads(self, values_GD: Tensor) -> Tensor:
        return values_GD.repeat_interleave(self.repeats, dim=0)


@dataclass
class Turned(Context):
    """What all blocks of one forward share, with the rotation of its tokens."""

    turn: tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and SwiGLU, each normalised at its start or, with `swin_norm`, at its end."""

    def __init__(self, config: LlamaSettings) -> None:
        super().__init__()
        E, D, inner = config.d_model, config.head_size, config.inner
        H, K, bias = config.num_heads, config.key_heads, config.qkv_bias
        self.config = config
        self.q_proj = nn.Linear(E, H * D, bias=bias)
        self.k_proj = nn.Linear(E, K * D, bias=bias)
        self.v_proj = nn.Linear(E, K * D, bias=bias)
        self.o_proj = nn.Linear(H * D, E, bias=False)
        self.gate_proj = nn.Linear(E, inner, bias=False)
        self.up_proj = nn.Linear(E, inner, bias=False)
        self.down_proj = nn.Linear(inner, E, bias=False)
        self.attention_norm = RMSNorm(E, config.norm_eps)
        self.ffn_norm = RMSNorm(E, config.norm_eps)
        normed = config.qk_norm != "none"
        self.q_norm = HeadNorm(H, config) if normed else nn.Identity()
        self.k_norm = HeadNorm(K, config) if normed else nn.Identity()

    def forward(self, x_BTE: Tensor, context: Turned) -> Tensor:
        if self.config.swin_norm:
            x_BTE = x_BTE + self._drop(self.attention_norm(self.attention(x_BTE, context)))
            return x_BTE + self._drop(self.ffn_norm(self.feed_forward(x_BTE)))
        x_BTE = x_BTE + self._drop(self.attention(self.attention_norm(x_BTE), context))
        return x_BTE + self._drop(self.feed_forward(self.ffn_norm(x_BTE)))

    def _drop(self, x_BTE: Tensor) -> Tensor:
        return F.dropout(x_BTE, self.config.dropout, self.training)

    def attention(self, x_BTE: Tensor, context: Turned) -> Tensor:
        q_BTHD, k_BTKD, v_BTKD = (
            rearrange(projected, "B T (H D) -> B T H D", D=self.config.head_size)
            for projected in projections(x_BTE, (self.q_proj, self.k_proj, self.v_proj))
        )
        attended_BTHD = context.attention.attend(
            rotated(self.q_norm(q_BTHD), context.turn),
            rotated(self.k_norm(k_BTKD), context.turn),
            v_BTKD,
            kv_start_BT=context.kv_start_BT,
            plan=context.plan,
        )
        return cast(Tensor, self.o_proj(rearrange(attended_BTHD, "B T H D -> B T (H D)")))

    def feed_forward(self, x_BTE: Tensor) -> Tensor:
        gate_BTF, up_BTF = projections(x_BTE, (self.gate_proj, self.up_proj))
        return cast(Tensor, self.down_proj(F.silu(gate_BTF) * up_BTF))
