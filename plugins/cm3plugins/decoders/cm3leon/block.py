"""One block of the CM3leon decoder: x + attention(LN(x)), then x + feed_forward(LN(x)).

Legend: B rows, T tokens, H heads, K key heads (= H), D head dimension, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cm3plugins.decoders.cm3leon.products import LAYER_NORM_EPS, layer_norm
from cm3plugins.decoders.cm3leon.settings import CM3LeonSettings
from cm3plugins.decoders.joined import projections
from cm3plugins.decoders.transformer import Context


class Block(nn.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)).

    The second matrix of both branches is initialised to zero.
    """

    def __init__(self, config: CM3LeonSettings, layer: int) -> None:
        super().__init__()
        E, F_ = config.d_model, config.d_ff or 4 * config.d_model
        self.layer, self.num_heads, self.dropout = layer, config.num_heads, config.dropout
        self.activation: Callable[[Tensor], Tensor] = getattr(F, config.activation)
        self.q_proj = nn.Linear(E, E, bias=False)
        self.k_proj = nn.Linear(E, E, bias=False)
        self.v_proj = nn.Linear(E, E, bias=False)
        self.out_proj = nn.Linear(E, E, bias=False)
        self.fc1 = nn.Linear(E, F_, bias=False)
        self.fc2 = nn.Linear(F_, E, bias=False)
        D = E // config.num_heads
        self.q_norm = (
            nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()
        )
        self.k_norm = (
            nn.LayerNorm(D, eps=LAYER_NORM_EPS, bias=False) if config.qk_norm else nn.Identity()
        )

    def forward(self, x_BTE: Tensor, context: Context) -> Tensor:
        x_BTE = x_BTE + F.dropout(
            self.attention(layer_norm(x_BTE), context), self.dropout, self.training
        )
        hidden_BTF = self.activation(self.fc1(layer_norm(x_BTE)))
        return x_BTE + F.dropout(self.fc2(hidden_BTF), self.dropout, self.training)

    def attention(self, x_BTE: Tensor, context: Context) -> Tensor:
        q_BTHD, k_BTKD, v_BTKD = (
            rearrange(projected, "B T (H D) -> B T H D", H=self.num_heads)
            for projected in projections(x_BTE, (self.q_proj, self.k_proj, self.v_proj))
        )
        q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        attended_BTHD = context.attention.attend(
            q_BTHD, k_BTKD, v_BTKD, kv_start_BT=context.kv_start_BT, plan=context.plan
        )
        return cast(Tensor, self.out_proj(rearrange(attended_BTHD, "B T H D -> B T (H D)")))
