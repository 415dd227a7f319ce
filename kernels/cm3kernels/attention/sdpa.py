"""Attention by torch's `scaled_dot_product_attention`.

Plain causal rows use `is_causal`, for which the kernels skip much of the upper triangle. On the CPU
packed rows are attended document by document, one causal call each, where that is faster: no score
across documents is computed, forward or backward; short ones in bfloat16 by plain products
(`cm3kernels.attention.products`). Everything else (a cache, retrieved documents, a
GPU) uses a boolean mask. Legend: B rows, T queries, S keys, H query heads, K key heads, D head
dimension, X tokens of all rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3kernels.attention.plan import AttentionPlan
from cm3kernels.attention.products import attend_documents, can_multiply

#: What a call costs in addition to its scores, as a number of scores of one head of 64 dimensions:
#: about 0.2 ms.
CALL_COST = 12_000
#: By what factor one call a document must be expected to be faster.
MARGIN = 1.2


def attention_sdpa(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKD: Tensor,
    *,
    plan: AttentionPlan,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, None]:
    """See `cm3kernels.attention`."""
    assert not return_lse, "refused by the dispatch"
    return _attend_plan(q_BTHD, k_BSKD, v_BSKD, plan, scale), None


def _attend_plan(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, plan: AttentionPlan, scale: float
) -> Tensor:
    B, T = q_BTHD.shape[:2]
    whole_rows = plan.plain and k_BSKD.shape[1] == T
    lengths = (T,) * B if whole_rows else plan.segments()
    if lengths is not None and can_multiply(q_BTHD, k_BSKD, lengths):
        q, k, v = (x.flatten(0, 1) for x in (q_BTHD, k_BSKD, v_BSKD))
        return attend_documents(q, k, v, lengths, scale).view(q_BTHD.shape)
    if plan.plain:
        return _attend(q_BTHD, k_BSKD, v_BSKD, None, scale)
    if lengths is not None and all(length == q_BTHD.shape[1] for length in lengths):
        return _attend(q_BTHD, k_BSKD, v_BSKD, None, scale)
    if lengths is None or not documents_are_faster(lengths, q_BTHD, torch.get_num_threads()):
        return _attend(q_BTHD, k_BSKD, v_BSKD, plan.mask(), scale)
    # Splitting is free, and its backward is one concatenation: each slice would fill a gradient of
    # full size with zeros.
    documents = zip(
        *(x.flatten(0, 1).split(lengths) for x in (q_BTHD, k_BSKD, v_BSKD)), strict=True
    )
    out_XHD = torch.cat(
        [_attend(q[None], k[None], v[None], None, scale)[0] for q, k, v in documents]
    )
    return out_XHD.view(q_BTHD.shape)


def documents_are_faster(lengths: tuple[int, ...], q_BTHD: Tensor, num_threads: int) -> bool:
    """Whether one call a document beats one call with a mask, forward and backward, on the CPU.

    The backward assigns whole heads of whole rows to threads: with two threads, three heads of one
    document take as long as four.
    """
    B, T, H, D = q_BTHD.shape
    together = -(-B * H // num_threads) * T**2 * D / 64
    one_by_one = sum(-(-H // num_threads) * length**2 * D / 64 + CALL_COST for length in lengths)
    return MARGIN * one_by_one <= together


def _attend(
    q_BTHD: Tensor, k_BSKD: Tensor, v_BSKD: Tensor, mask_B1TS: Tensor | None, scale: float
) -> Tensor:
    """One call; causal without a mask."""
    q_BHTD, k_BKSD, v_BKSD = (x.transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKD))
    out_BHTD = F.scaled_dot_product_attention(
        q_BHTD,
        k_BKSD,
        v_BKSD,
        attn_mask=mask_B1TS,
        is_causal=mask_B1TS is None,
        scale=scale,
        enable_gqa=q_BHTD.shape[1] != k_BKSD.shape[1],
    )
    return out_BHTD.transpose(1, 2)
