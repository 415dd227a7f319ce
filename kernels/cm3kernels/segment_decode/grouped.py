"""Decode attention over segments on a CPU: each run of segments is one call of PyTorch's attention, results merged by their LSE.

All rows of a shared segment are the queries of one product, so its keys are read once for all of them. In a run of unequal
lengths neighbours of equal length go into one call: no segment pays for a longer one, nothing is padded, copied or masked.

Legend: R rows, H query heads, K key heads, G = H / K, D head dimension, U most segments of a row, Z uses (a row reading a
segment), b segments of a run, n rows of a segment, M = n * G queries, L keys.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from cm3kernels.segment_decode.plan import SegmentPlan, SegmentRun


def segment_decode_grouped(q_RHD: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, plan: SegmentPlan, *,
                           scale: float | None = None) -> Tensor:
    """See `cm3kernels.segment_decode`."""
    R, H, D = q_RHD.shape
    U = plan.run_uses.shape[1]
    if U == 0:
        return torch.zeros_like(q_RHD)
    scale = 1 / math.sqrt(D) if scale is None else scale
    held = lengths.tolist()
    q_ZHD, begin, parts = q_RHD.index_select(0, plan.run_rows), 0, []
    for run in plan.runs:
        b, n = len(run.segments), run.num_rows
        q_bKMD = q_ZHD[begin:begin + b * n].view(b, n, plan.num_key_heads, -1, D).transpose(1, 2).flatten(2, 3)
        out_bKMD, lse_bKM = _attend_run(q_bKMD, keys, values, run, [held[segment] for segment in run.segments], scale)
        parts.append((out_bKMD.unflatten(2, (n, -1)).transpose(1, 2).reshape(-1, H, D),
                      lse_bKM.unflatten(2, (n, -1)).transpose(1, 2).reshape(-1, H)))
        begin += b * n
    # One entry more than there are uses: rows with fewer segments point to it.
    parts.append(_nothing((1, H), q_RHD))
    out_ZHD, lse_ZH = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    uses = plan.run_uses.flatten()
    weights_RUH = torch.softmax(lse_ZH.index_select(0, uses).view(R, U, H), dim=1)
    return (out_ZHD.index_select(0, uses).view(R, U, H, D) * weights_RUH.unsqueeze(-1)).sum(dim=1).to(q_RHD.dtype)


def _nothing(shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor]:
    """Results of attention to no keys: zeros, and an LSE that weighs nothing beside any other.

    The smallest number and not -inf: the softmax of LSEs that are all -inf, of a row without keys, is no number.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_zeros(*shape, like.shape[-1]), like.new_full(shape, torch.finfo(dtype).min, dtype=dtype)


def _attend_run(q_bKMD: Tensor, keys: Tensor, values: Tensor, run: SegmentRun, held: list[int], scale: float
                ) -> tuple[Tensor, Tensor]:
    """Attention of each segment's queries to its keys: results, and natural LSE [b, K, M]."""
    parts, first = [], 0
    for length, neighbours in groupby(held):
        end = first + sum(1 for _ in neighbours)
        q_part = q_bKMD[first:end]
        if length:
            start = run.start + first * run.capacity
            k_bKLD, v_bKLD = (_view(pool, start, run.capacity, end - first, length) for pool in (keys, values))
            parts.append(_attend(q_part, k_bKLD, v_bKLD, scale))
        else:
            parts.append(_nothing(q_part.shape[:3], q_part))
        first = end
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _view(pool: Tensor, start: int, capacity: int, num_segments: int, length: int) -> Tensor:
    """The first `length` slots of neighbouring segments, [b, K, L, D], without a copy."""
    slot, head, _ = pool.stride()
    return pool.as_strided((num_segments, pool.shape[1], length, pool.shape[2]), (capacity * slot, head, slot, 1),
                           pool.storage_offset() + start * slot)


def _attend(q_bKMD: Tensor, k_bKLD: Tensor, v_bKLD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    # The function behind scaled_dot_product_attention on a CPU, which keeps the LSE to itself.
    out_bKMD, lse_bKM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_bKMD, k_bKLD, v_bKLD, scale=scale)
    return out_bKMD, lse_bKM
