"""Decode attention over segments on a CPU: each run of segments is one call of PyTorch's attention, and
results are merged by their LSE.

All rows of a shared segment are queries of one product, so its keys are read once for all of them. In a run of
unequal lengths, adjacent segments of equal length share a call: no segment pays for a longer one, and nothing is
padded, copied or masked. At small sizes the calls dominate, so each finished run is merged into its rows, as
views.

Legend: R rows, H query heads, K key heads, G = H / K, D head dimension, b segments of a run, n rows
of a segment, M = n * G queries, L keys.
"""

from __future__ import annotations

import math
from itertools import groupby

import torch
from torch import Tensor

from cm3kernels.segment_decode.plan import SegmentPlan, SegmentRun


def segment_decode_grouped(
    q_RHD: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    plan: SegmentPlan,
    *,
    scale: float | None = None,
) -> Tensor:
    """See `cm3kernels.segment_decode`."""
    R, H, D = q_RHD.shape
    K, inside = plan.num_key_heads, torch.promote_types(q_RHD.dtype, torch.float32)
    scale = 1 / math.sqrt(D) if scale is None else scale
    held = lengths.tolist()
    q_RKGD = q_RHD.view(R, K, -1, D)
    out_RKGD: Tensor | None = None
    for run in plan.runs:
        b, n = len(run.segments), run.num_rows
        q_ZKGD = q_RKGD[run.rows]
        q_bKMD = q_ZKGD if n == 1 else q_ZKGD.view(b, n, K, -1, D).transpose(1, 2).flatten(2, 3)
        parts = _attend_run(
            q_bKMD, keys, values, run, [held[segment] for segment in run.segments], scale
        )
        if parts is None:
            continue
        # torch's results are in memory query by query, so this needs no copy.
        part_ZKGD, lse_ZKG = (
            part.transpose(1, 2).reshape(b * n, -1, K, *part.shape[3:]).transpose(1, 2)
            for part in parts
        )
        part_ZKGD = part_ZKGD.to(inside)
        if out_RKGD is None:
            if run.rows == slice(0, R, 1):
                out_RKGD, lse_RKG = part_ZKGD.contiguous(), lse_ZKG.contiguous()
                continue
            out_RKGD, lse_RKG = _nothing(q_RKGD)
        before_ZKG = lse_RKG[run.rows]
        share_ZKG1 = torch.sigmoid(lse_ZKG - before_ZKG).unsqueeze(-1)
        if isinstance(run.rows, slice):
            out_RKGD[run.rows].lerp_(part_ZKGD, share_ZKG1)
            torch.logaddexp(before_ZKG, lse_ZKG, out=before_ZKG)
        else:
            out_RKGD.index_copy_(0, run.rows, out_RKGD[run.rows].lerp_(part_ZKGD, share_ZKG1))
            lse_RKG.index_copy_(0, run.rows, torch.logaddexp(before_ZKG, lse_ZKG))
    return torch.zeros_like(q_RHD) if out_RKGD is None else out_RKGD.view(R, H, D).to(q_RHD.dtype)


def _nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return results of attention to no keys: zeros, and an LSE with no weight against any other.

    The LSE is the smallest number, not -inf, since the difference of two -inf would be NaN.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    return like.new_zeros(like.shape, dtype=dtype), like.new_full(
        like.shape[:-1], torch.finfo(dtype).min, dtype=dtype
    )


def _attend_run(
    q_bKMD: Tensor, keys: Tensor, values: Tensor, run: SegmentRun, held: list[int], scale: float
) -> tuple[Tensor, Tensor] | None:
    """Return attention of each segment's queries to its keys: results, and natural LSE [b, K, M]. None if all
    are empty."""
    if held.count(held[0]) == len(held):
        return _attend(q_bKMD, keys, values, run, 0, held[0], scale) if held[0] else None
    parts, first = [], 0
    for length, neighbours in groupby(held):
        q_part = q_bKMD[first : first + sum(1 for _ in neighbours)]
        parts.append(
            _attend(q_part, keys, values, run, first, length, scale) if length else _nothing(q_part)
        )
        first += len(q_part)
    dtype = torch.promote_types(q_bKMD.dtype, torch.float32)
    return torch.cat([out.to(dtype) for out, _ in parts]), torch.cat([lse for _, lse in parts])


def _attend(
    q_bKMD: Tensor,
    keys: Tensor,
    values: Tensor,
    run: SegmentRun,
    first: int,
    length: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend to the run's segments from number `first` on, as many as there are queries, all with this
    length."""
    k_bKLD, v_bKLD = (
        _view(pool, run.start + first * run.capacity, run.capacity, len(q_bKMD), length)
        for pool in (keys, values)
    )
    # The function behind scaled_dot_product_attention on a CPU, which doesn't return the LSE.
    out_bKMD, lse_bKM = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_bKMD, k_bKLD, v_bKLD, scale=scale
    )
    return out_bKMD, lse_bKM


def _view(pool: Tensor, start: int, capacity: int, num_segments: int, length: int) -> Tensor:
    """Return the first `length` slots of adjacent segments, [b, K, L, D], without a copy."""
    slot, head, _ = pool.stride()
    return pool.as_strided(
        (num_segments, pool.shape[1], length, pool.shape[2]),
        (capacity * slot, head, slot, 1),
        pool.storage_offset() + start * slot,
    )
