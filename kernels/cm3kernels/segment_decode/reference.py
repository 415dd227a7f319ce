"""Decode attention over segments, in plain tensor algebra: the definition that every faster
implementation must match.

Legend: R rows, H query heads, K key heads, G = H / K, D head dimension, L keys of a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.segment_decode.plan import SegmentPlan


def segment_decode_reference(
    q_RHD: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    plan: SegmentPlan,
    *,
    scale: float | None = None,
) -> Tensor:
    """See `cm3kernels.segment_decode`: a row attends to its segments' keys, one after the other. Computes in
    float32 (float64 for float64). Loops over rows and copies each row's keys, so it is only for
    tests."""
    R, H, D = q_RHD.shape
    inside = torch.promote_types(q_RHD.dtype, torch.float32)
    held = lengths.tolist()
    out_RHD = q_RHD.new_zeros(R, H, D, dtype=inside)
    for row, segments in enumerate(plan.row_segments):
        slots = [
            torch.arange(plan.starts[segment], plan.starts[segment] + held[segment])
            for segment in segments
        ]
        slots_L = torch.cat([*slots, torch.zeros(0, dtype=torch.int64)]).to(q_RHD.device)
        if len(slots_L):
            k_LKD, v_LKD = keys[slots_L].to(inside), values[slots_L].to(inside)
            q_KGD = q_RHD[row].to(inside).view(k_LKD.shape[1], -1, D)
            scores_KGL = torch.einsum("kgd,lkd->kgl", q_KGD, k_LKD) * (
                1 / math.sqrt(D) if scale is None else scale
            )
            out_RHD[row] = torch.einsum(
                "kgl,lkd->kgd", torch.softmax(scores_KGL, dim=-1), v_LKD
            ).reshape(H, D)
    return out_RHD.to(q_RHD.dtype)
