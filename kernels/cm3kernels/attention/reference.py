"""Attention with one visibility rule, in plain tensor algebra: the definition that every faster
implementation must match.

Legend: B rows, T queries, S keys, H query heads, K key heads, G = H / K queries per key head, D head
dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kernels.attention.plan import AttentionPlan, visible_mask


def attention_reference(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    plan: AttentionPlan,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """See `cm3kernels.attention`. Computes in float32 (float64 for float64); memory B * H * T *
    S."""
    B, T, H, D = q_BTHD.shape
    S, K = k_BSKD.shape[1:3]
    inside = torch.promote_types(q_BTHD.dtype, torch.float32)
    q_BTKGD = q_BTHD.to(inside).reshape(B, T, K, H // K, D)
    scores_BKGTS = torch.einsum("btkgd,bskd->bkgts", q_BTKGD, k_BSKD.to(inside)) * scale

    visible_B1TS = visible_mask(T, S, plan.kv_start, plan.offset).to(q_BTHD.device)
    visible_B11TS = visible_B1TS[:, None]
    # Masks are boolean, without arithmetic with -inf: a query that sees nothing gives zeros and zero
    # gradients, not NaN.
    scores_BKGTS = scores_BKGTS.masked_fill(~visible_B11TS, torch.finfo(inside).min)
    weights_BKGTS = torch.softmax(scores_BKGTS, dim=-1).masked_fill(~visible_B11TS, 0.0)
    out_BTHD = (
        torch.einsum("bkgts,bskd->btkgd", weights_BKGTS, v_BSKD.to(inside))
        .reshape(B, T, H, D)
        .to(q_BTHD.dtype)
    )
    if not return_lse:
        return out_BTHD, None
    lse_BKGT = torch.logsumexp(scores_BKGTS, dim=-1).masked_fill(~visible_B11TS.any(-1), -torch.inf)
    return out_BTHD, lse_BKGT.reshape(B, H, T)
