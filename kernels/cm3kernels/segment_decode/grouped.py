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
    H, D = q_RHD.shape[1:]
    K = plan.num_key_heads
    scale = 1 / math.sqrt(D) if scale is None else scale
    q_ZHD = q_RHD[plan.run_rows]
    Z = len(q_ZHD)
    # One entry more than there are uses: rows with fewer segments point to it, and its weight is 0.
    out_ZHD, lse_ZH = _empty_parts(Z + 1, H, D, q_RHD)
    begin = 0
    for start, capacity, num_segments, num_rows, length in _calls(plan, lengths.tolist()):
        end = begin + num_segments * num_rows
        if length:
            q_bKMD = (q_ZHD[begin:end].view(num_segments, num_rows, K, H // K, D).transpose(1, 2)
                      .reshape(num_segments, K, num_rows * (H // K), D))
            k_bKLD, v_bKLD = (_view(pool, start, capacity, num_segments, length) for pool in (keys, values))
            out_bKMD, lse_bKM = _attend(q_bKMD, k_bKLD, v_bKLD, scale)
            heads = (num_segments, K, num_rows, H // K)
            out_ZHD[begin:end] = out_bKMD.unflatten(2, heads[2:]).transpose(1, 2).reshape(-1, H, D)
            lse_ZH[begin:end] = lse_bKM.reshape(heads).transpose(1, 2).reshape(-1, H)
        begin = end
    if plan.run_uses.shape[1] == 0:
        return torch.zeros_like(q_RHD)
    weights_RUH = merge_weights(lse_ZH[plan.run_uses])
    return (out_ZHD[plan.run_uses] * weights_RUH.unsqueeze(-1)).sum(dim=1).to(q_RHD.dtype)


def merge_weights(lse_RUH: Tensor) -> Tensor:
    """Each partial result's part of the whole, from natural LSEs; zeros where all of a row's are -inf.

    >>> merge_weights(torch.tensor([[[0.0], [math.log(3.0)]], [[-math.inf], [-math.inf]]]))[..., 0].tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    largest_R1H = lse_RUH.amax(dim=1, keepdim=True)
    weights_RUH = torch.exp(lse_RUH - largest_R1H.masked_fill(largest_R1H == -math.inf, 0.0))
    return weights_RUH / weights_RUH.sum(dim=1, keepdim=True).clamp(min=torch.finfo(lse_RUH.dtype).tiny)


def _empty_parts(num: int, num_heads: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Results and LSEs of nothing: zeros and -inf."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_zeros(num, num_heads, dim, dtype=dtype), like.new_full((num, num_heads), -math.inf, dtype=dtype)


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
