"""Op `segment_decode`: its arguments, checked. Layout, formula, shapes: README.md in this folder;
implementations: `cm3kernels.dispatch`."""

from __future__ import annotations

import math
from operator import le

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.dispatch import SEGMENT_DECODE as IMPLEMENTATIONS
from cm3kernels.dispatch import choose
from cm3kernels.segment_decode.plan import SegmentPlan, plan_segments

__all__ = ["IMPLEMENTATIONS", "SegmentPlan", "plan_segments", "segment_decode"]


def segment_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    plan: SegmentPlan,
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Attend from one new token of each row to all keys of the row's segments: softmax(q k^T * scale) v over
    their concatenation.

    Args:
        q: floating [R, H, D].
        keys, values: the pool of one layer, same dtype, [slots, K, D]; any strides, with the last
            one 1.
        lengths: int32 [S], on the same device: filled slots of each segment, 0 to its capacity. Other slots
            are never read, whatever they contain.
        plan: from `plan_segments`, on the same device.
        scale: positive and finite; default 1 / sqrt(D).
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        [R, H, D], dtype of q; zeros for a row without keys. No gradient.

    Raises:
        ValueError: shapes, dtypes or devices are invalid; a gradient is required; on a CPU also lengths
            outside a segment (on CUDA lengths are not checked, and a kernel stops at the segment's end); or
            the implementation can't run.

    Source: partial attention merged by its log-sum-exp: Juravsky et al. 2024 (Hydragen,
    arXiv:2402.05099), section 3.

    >>> plan = plan_segments([0, 2], [2, 4], [[0, 1], [0]], num_query_heads=1, num_key_heads=1)
    >>> keys, values = torch.zeros(6, 1, 32), torch.arange(6.0)[:, None, None].repeat(1, 1, 32)
    >>> lengths = torch.tensor([2, 1], dtype=torch.int32)
    >>> segment_decode(torch.ones(2, 1, 32), keys, values, lengths, plan)[:, 0, 0].tolist()
    [1.0, 0.5]
    """
    _check(q, keys, values, lengths, plan, scale)
    out: Tensor = choose("segment_decode", implementation, IMPLEMENTATIONS, q)(
        q, keys, values, lengths, plan, scale=scale
    )
    return out


def _check(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, plan: SegmentPlan, scale: float | None
) -> None:
    op = "segment_decode"
    require(
        q.ndim == keys.ndim == 3 and keys.shape == values.shape,
        op,
        lambda: (
            f"q is {list(q.shape)}, keys {list(keys.shape)}, values {list(values.shape)}, must "
            "be [rows, query heads, D] and twice [slots, key heads, D]"
        ),
    )
    require(
        q.dtype == keys.dtype == values.dtype and q.is_floating_point(),
        op,
        lambda: (
            f"q, keys and values share one floating dtype, got {q.dtype}, {keys.dtype}, "
            f"{values.dtype}"
        ),
    )
    require(
        q.shape[:2] == (plan.num_rows, plan.num_query_heads),
        op,
        lambda: (
            f"q is {list(q.shape)}, the plan is for "
            f"{[plan.num_rows, plan.num_query_heads, keys.shape[2]]}"
        ),
    )
    require(
        keys.shape[1:] == (plan.num_key_heads, q.shape[2]),
        op,
        lambda: f"keys are {list(keys.shape)}, must be [slots, {plan.num_key_heads}, {q.shape[2]}]",
    )
    require(
        keys.shape[0] >= plan.num_slots,
        op,
        lambda: f"the pool has {keys.shape[0]} slots, the plan's segments end at {plan.num_slots}",
    )
    require(
        lengths.dtype == torch.int32 and lengths.shape == (plan.num_segments,),
        op,
        lambda: (
            f"lengths is {list(lengths.shape)} {lengths.dtype}, must be int32 {[plan.num_segments]}"
        ),
    )
    for name, tensor in (("q", q), ("keys", keys), ("values", values)):
        if tensor.stride(2) != 1:
            require(
                False, op, f"{name} has strides {list(tensor.stride())}, the last one must be 1"
            )
    require(
        scale is None or 0 < scale < math.inf,
        op,
        lambda: f"scale is {scale}, must be positive and finite",
    )
    require(
        not (
            torch.is_grad_enabled()
            and (q.requires_grad or keys.requires_grad or values.requires_grad)
        ),
        op,
        "q, keys or values require a gradient, which this op doesn't have; next: call it under "
        "torch.no_grad()",
    )
    devices = {
        "q": q.device,
        "keys": keys.device,
        "values": values.device,
        "lengths": lengths.device,
        "plan": plan.items.device,
    }
    require(
        q.device == keys.device == values.device == lengths.device == plan.items.device,
        op,
        lambda: (
            "everything must be on one device, got "
            f"{', '.join(f'{name} on {where}' for name, where in devices.items())}"
        ),
    )
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        held = lengths.tolist()
        if not all(map(le, held, plan.capacities)) or min(held, default=0) < 0:
            segment = next(
                place
                for place, length in enumerate(held)
                if not 0 <= length <= plan.capacities[place]
            )
            require(
                False,
                op,
                f"segment {segment} is {held[segment]} long, must be 0 to "
                f"{plan.capacities[segment]}",
            )
