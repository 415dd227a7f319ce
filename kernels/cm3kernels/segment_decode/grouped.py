"""Decode attention over segments on a CPU: each run of segments is one call of PyTorch's attention, results merged by their LSE.

All rows of a shared segment are the queries of one product, so its keys are read once for all of them. Neighbours of equal length
go into one call; a segment never pays for a longer neighbour, nothing is padded, copied or masked.

Legend: R rows, H query heads, K key heads, G = H / K, D head dimension, U most segments of a row, Z uses (a row reading a
segment), b segments of a call, n rows of a segment, M = n * G queries, L keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from cm3kernels.segment_decode.plan import SegmentPlan


def segment_decode_grouped(q_RHD: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, plan: SegmentPlan, *,
                           scale: float | None = None) -> Tensor:
    """See `cm3kernels.segment_decode`."""
    R, H, D = q_RHD.shape
    K, U, Z = plan.num_key_heads, plan.run_uses.shape[1], len(plan.run_rows)
    if U == 0:
        return torch.zeros_like(q_RHD)
    scale = 1 / math.sqrt(D) if scale is None else scale
    q_ZHD = q_RHD.index_select(0, plan.run_rows)
    # Results of nothing: zeros that weigh nothing. The smallest number and not -inf, whose softmax is no number where a row has
    # no keys at all. One entry more than there are uses: rows with fewer segments point to it.
    dtype = torch.promote_types(q_RHD.dtype, torch.float32)
    out_ZHD = q_RHD.new_zeros(Z + 1, H, D, dtype=dtype)
    lse_ZH = q_RHD.new_full((Z + 1, H), torch.finfo(dtype).min, dtype=dtype)
    begin = 0
    for start, capacity, num_segments, num_rows, length in _calls(plan, lengths.tolist()):
        end = begin + num_segments * num_rows
        if length:
            heads = (num_segments, num_rows, K, H // K)
            q_bKMD = q_ZHD[begin:end].view(*heads, D).transpose(1, 2).flatten(2, 3)
            k_bKLD, v_bKLD = (_view(pool, start, capacity, num_segments, length) for pool in (keys, values))
            out_bKMD, lse_bKM = _attend(q_bKMD, k_bKLD, v_bKLD, scale)
            out_ZHD[begin:end].view(*heads, D).copy_(out_bKMD.unflatten(2, heads[1::2]).transpose(1, 2))
            lse_ZH[begin:end].view(heads).copy_(lse_bKM.unflatten(2, heads[1::2]).transpose(1, 2))
        begin = end
    uses = plan.run_uses.flatten()
    weights_RUH = torch.softmax(lse_ZH.index_select(0, uses).view(R, U, H), dim=1)
    return (out_ZHD.index_select(0, uses).view(R, U, H, D) * weights_RUH.unsqueeze(-1)).sum(dim=1).to(q_RHD.dtype)


def _calls(plan: SegmentPlan, lengths: list[int]) -> Iterator[tuple[int, int, int, int, int]]:
    """Start, capacity, number of segments, rows of each, present length: neighbours of equal length together."""
    for run in plan.runs:
        start = run.start
        for length, neighbours in groupby(run.segments, key=lengths.__getitem__):
            num = sum(1 for _ in neighbours)
            yield start, run.capacity, num, run.num_rows, length
            start += num * run.capacity


def _view(pool: Tensor, start: int, capacity: int, num_segments: int, length: int) -> Tensor:
    """The first `length` slots of neighbouring segments, [b, K, L, D], without a copy."""
    slot, head, _ = pool.stride()
    return pool.as_strided((num_segments, pool.shape[1], length, pool.shape[2]), (capacity * slot, head, slot, 1),
                           pool.storage_offset() + start * slot)


def _attend(q_bKMD: Tensor, k_bKLD: Tensor, v_bKLD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention to all keys: results, and natural LSE [b, K, M]."""
    # The function behind scaled_dot_product_attention on a CPU, which keeps the LSE to itself.
    out_bKMD, lse_bKM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_bKMD, k_bKLD, v_bKLD, scale=scale)
    return out_bKMD, lse_bKM
