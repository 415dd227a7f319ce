"""Attention with one visibility rule, in plain tensor algebra: the meaning of every faster implementation.

Legend: B rows, T queries, S keys, H query heads, K key heads, G = H / K queries a key head, D head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_reference(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, *, kv_start: Tensor | None = None,
                        offset: Tensor | None = None, scale: float | None = None) -> Tensor:
    """See `cm3kernels.attention`. Float32 inside, float64 for float64; memory B * H * T * S."""
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    inside = torch.promote_types(q_BTHD.dtype, torch.float32)
    q_BTKGD = q_BTHD.to(inside).reshape(B, T, K, H // K, D)
    scores_BKGTS = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k_BSKD.to(inside)) * (1 / math.sqrt(D) if scale is None else scale)

    key_S = torch.arange(S, device=q_BTHD.device)
    last_BT = torch.arange(T, device=q_BTHD.device)[None] + (0 if offset is None else offset[:, None])
    visible_BTS = key_S <= last_BT[..., None]
    if kv_start is not None:
        visible_BTS = visible_BTS & (key_S >= kv_start[..., None])
    visible_B11TS = visible_BTS[:, None, None]

    # Masks by boolean, never by arithmetic with -inf: a query that sees nothing gives zeros and zero gradients, not NaN.
    scores_BKGTS = scores_BKGTS.masked_fill(~visible_B11TS, torch.finfo(inside).min)
    weights_BKGTS = torch.softmax(scores_BKGTS, dim=-1).masked_fill(~visible_B11TS, 0.0)
    return torch.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKD.to(inside)).reshape(B, T, H, D).to(q_BTHD.dtype)
