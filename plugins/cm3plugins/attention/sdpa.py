"""Attention by torch's `scaled_dot_product_attention`.

Plain causal rows take `is_causal` (the kernel skips the upper half); packed rows and a cache take a boolean mask, made once
for all layers. Legend: B rows, T queries, S keys, H query heads, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3core.interfaces.attention import AttentionBackend


def visible_mask(num_queries: int, num_keys: int, kv_start_BT: Tensor | None, offset_B: Tensor | None) -> Tensor | None:
    """Bool [B, 1, T, S] of who sees whom, or None for plain causal attention without a cache."""
    given = kv_start_BT if offset_B is None else offset_B
    if given is None:
        return None
    key_S = torch.arange(num_keys, device=given.device)
    last_T = torch.arange(num_queries, device=given.device)
    last_BT = last_T[None] if offset_B is None else offset_B[:, None] + last_T
    mask_BTS = key_S <= last_BT[..., None]
    if kv_start_BT is not None:
        mask_BTS = mask_BTS & (key_S >= kv_start_BT[..., None])
    return mask_BTS[:, None]


class SDPAAttention(AttentionBackend):
    """See `AttentionBackend`; a plan is the mask."""

    def plan(self, *, num_queries: int, num_keys: int, kv_start_BT: Tensor | None = None,
             offset_B: Tensor | None = None) -> Tensor | None:
        return visible_mask(num_queries, num_keys, kv_start_BT, offset_B)

    def attend(self, q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, kv_start_BT: Tensor | None = None,
               offset_B: Tensor | None = None, scale: float | None = None, plan: Tensor | None = None) -> Tensor:
        mask_B1TS = plan
        if mask_B1TS is None:
            mask_B1TS = visible_mask(q_BTHD.shape[1], k_BSKD.shape[1], kv_start_BT, offset_B)
        q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
        H, K = q_BHTD.shape[1], k_BKSD.shape[1]
        out_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BKSD, v_BKSD, attn_mask=mask_B1TS, is_causal=mask_B1TS is None,
                                                  scale=scale, enable_gqa=H != K)
        return out_BHTD.transpose(1, 2)
