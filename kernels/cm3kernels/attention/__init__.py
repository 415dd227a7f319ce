"""Op `attention`: its arguments, checked. Formula and shapes: README.md in this folder; implementations:
`cm3kernels.dispatch`."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from cm3kernels.attention.plan import AttentionPlan
from cm3kernels.dispatch import ATTENTION as IMPLEMENTATIONS
from cm3kernels.dispatch import ATTENTION_WITH_LSE as IMPLEMENTATIONS_WITH_LSE
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "AttentionPlan", "attention", "cast_by_autocast"]


OP = "attention"


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kv_start: Tensor | None = ...,
    offset: Tensor | None = ...,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    implementation: str = ...,
    plan: AttentionPlan | None = ...,
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kv_start: Tensor | None = ...,
    offset: Tensor | None = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
    implementation: str = ...,
    plan: AttentionPlan | None = ...,
) -> tuple[Tensor, Tensor]: ...


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    kv_start: Tensor | None = None,
    offset: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str = "auto",
    plan: AttentionPlan | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(q k^T * scale, over the visible keys) v, where query i of row b sees kv_start[b, i]
    <= j <= offset[b] + i.

    Under autocast, floating inputs are cast to autocast's dtype first, as torch's own function
    does.

    Args:
        q: floating [B, T, H, D], last stride 1; any other strides.
        k, v: same dtype, [B, S, K, D]; H is a multiple of K (query head h reads key head h // (H /
            K)); last stride 1.
        kv_start: int32 or int64 [B, T], any values: below 0 counts as 0; past its own position a query
            sees nothing. None: 0.
        offset: int32 or int64 [B]; None: 0 for all, which requires S == T.
        scale: positive and finite; default 1 / sqrt(D).
        return_lse: also return the logarithm of the softmax's denominator.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.
        plan: an `AttentionPlan` made from exactly these T, S, kv_start and offset, to share it between
            calls.

    Returns:
        out [B, T, H, D], dtype of q; zeros (and zero gradients) for a query that sees no key. With
        `return_lse` also lse [B, H, T], natural logarithm, float32 (float64 for float64); -inf for
        a query that sees no key. Both are differentiable; with `offset` only by "sdpa" and
        "reference".

    Raises:
        ValueError: shapes, dtypes, devices or strides are invalid, or the implementation can't run
            here.
    """
    q, k, v = cast_by_autocast(q, k, v)
    _check(q, k, v, kv_start, offset, scale)
    if plan is None:
        plan = AttentionPlan(q.shape[1], k.shape[1], kv_start, offset)
    if (
        (plan.num_queries, plan.num_keys) != (q.shape[1], k.shape[1])
        or plan.kv_start is not kv_start
        or plan.offset is not offset
    ):
        raise _wrong("plan was made for other lengths, or for other tensors kv_start and offset")
    available = IMPLEMENTATIONS_WITH_LSE if return_lse else IMPLEMENTATIONS
    run = choose(OP, implementation, available, q)
    with torch.autocast(q.device.type, enabled=False):
        out, lse = run(
            q,
            k,
            v,
            plan=plan,
            scale=1 / math.sqrt(q.shape[3]) if scale is None else scale,
            return_lse=return_lse,
        )
    return (out, lse) if return_lse else out


def cast_by_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast floating tensors to autocast's dtype if it is enabled for their device (float64 is unchanged);
    otherwise return them unchanged.

    Under autocast a norm of q and k gives float32 while v is bfloat16: torch's own function casts them, and
    so does this one."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors
    )


def _wrong(cause: str) -> ValueError:
    return ValueError(f"{OP}: {cause}")


# An op is called in every layer of every step, and formatting a dozen messages takes about 15 us, so messages are
# formatted only on failure.


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_start: Tensor | None,
    offset: Tensor | None,
    scale: float | None,
) -> None:
    if not q.ndim == k.ndim == v.ndim == 4:
        raise _wrong("q, k and v are [rows, tokens, heads, head dimension]")
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise _wrong(f"q, k and v share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if k.shape != v.shape:
        raise _wrong(f"k is {list(k.shape)}, v is {list(v.shape)}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[3] == 0:
        raise _wrong(
            f"q {list(q.shape)} and k {list(k.shape)} differ in rows or head dimension, or have none"
        )
    if k.shape[2] == 0 or q.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise _wrong(f"{q.shape[2]} query heads on {k.shape[2]} key heads")
    if offset is None and q.shape[1] != k.shape[1]:
        raise _wrong(f"{q.shape[1]} queries on {k.shape[1]} keys need an offset")
    if scale is not None and not 0 < scale < math.inf:
        raise _wrong(f"scale is {scale}, must be positive and finite")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(3) != 1 and x.shape[3] != 1:
            raise _wrong(
                f"{name}'s last stride is {x.stride(3)}, must be 1; next: {name}.contiguous()"
            )
    for name, tensor, shape in (
        ("kv_start", kv_start, q.shape[:2]),
        ("offset", offset, q.shape[:1]),
    ):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype not in (torch.int32, torch.int64)
        ):
            raise _wrong(
                f"{name} is {list(tensor.shape)} {tensor.dtype}, must be int32 or int64 {list(shape)}"
            )
    for name, other in (("k", k), ("v", v), ("kv_start", kv_start), ("offset", offset)):
        if other is not None and other.device != q.device:
            raise _wrong(f"{name} is on {other.device}, q on {q.device}")
