"""Op `attention`: validation and dispatch. Formula and shapes: README.md in this folder."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from cm3kernels._dispatch import (
    Implementation,
    choose,
    require,
    triton_implementation,
    triton_refusal,
)
from cm3kernels.attention.limits import LARGEST_HEAD_DIM, OP
from cm3kernels.attention.plan import AttentionPlan
from cm3kernels.attention.reference import attention_reference
from cm3kernels.attention.sdpa import attention_sdpa

__all__ = ["IMPLEMENTATIONS", "AttentionPlan", "attention", "cast_by_autocast"]


def _load_triton() -> Any:
    from cm3kernels.attention.triton import attention_triton

    return attention_triton


def _triton_refusal(q: Tensor) -> str | None:
    if (reason := triton_refusal(q)) is not None:
        return reason
    if q.shape[3] > LARGEST_HEAD_DIM:
        return (
            f"the head dimension is {q.shape[3]}, the kernels support up to {LARGEST_HEAD_DIM}; "
            "next: implementation='sdpa'"
        )
    if q.dtype == torch.float64 and q.device.type == "cuda":
        return (
            "float64 is only for checks in the interpreter; next: implementation='reference', or a "
            "narrower dtype"
        )
    return None


IMPLEMENTATIONS = {
    "triton": triton_implementation(_load_triton, _triton_refusal),
    "sdpa": Implementation(lambda: attention_sdpa),
    "reference": Implementation(lambda: attention_reference),
}
_NO_LSE = Implementation(
    lambda: attention_sdpa,
    lambda q: (
        "torch's function returns no lse; next: implementation='reference', "
        "or 'triton' on a CUDA device"
    ),
)
IMPLEMENTATIONS_WITH_LSE = {**IMPLEMENTATIONS, "sdpa": _NO_LSE}


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
        k, v: the same dtype [B, S, K, D]; H a multiple of K (query head h reads key head h // (H /
            K)); last stride 1.
        kv_start: int32 or int64 [B, T], any values: below 0 counts as 0, and past its own position
            a query sees nothing. None: 0.
        offset: int32 or int64 [B]; None: 0 for all, and then S == T.
        scale: positive and finite; default 1 / sqrt(D).
        return_lse: also return the logarithm of the softmax's denominator.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.
        plan: an `AttentionPlan` made from exactly these T, S, kv_start and offset, for calls that
            share them.

    Returns:
        out [B, T, H, D], dtype of q; zeros (and zero gradients) for a query that sees no key. With
        `return_lse` also lse [B, H, T], natural logarithm, float32 (float64 for float64); -inf for
        a query that sees no key. Both are differentiable; with `offset` only by "sdpa" and
        "reference".

    Raises:
        ValueError: shapes, dtypes, devices or strides that don't fit, or an implementation that
            can't run here.
    """
    q, k, v = cast_by_autocast(q, k, v)
    _check(q, k, v, kv_start, offset, scale)
    if plan is None:
        plan = AttentionPlan(q.shape[1], k.shape[1], kv_start, offset)
    require(
        (plan.num_queries, plan.num_keys) == (q.shape[1], k.shape[1])
        and plan.kv_start is kv_start
        and plan.offset is offset,
        OP,
        "plan was made for other lengths, or for other tensors kv_start and offset",
    )
    run = choose(OP, implementation, IMPLEMENTATIONS_WITH_LSE if return_lse else IMPLEMENTATIONS, q)
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
    """Floating tensors in autocast's dtype where it is enabled for their device (float64 stays as
    it is); otherwise unchanged.

    Under autocast a norm of q and k gives float32 while v is bfloat16: torch's own function casts
    them, and so do we."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_start: Tensor | None,
    offset: Tensor | None,
    scale: float | None,
) -> None:
    require(
        q.ndim == k.ndim == v.ndim == 4, OP, "q, k and v are [rows, tokens, heads, head dimension]"
    )
    require(
        q.dtype == k.dtype == v.dtype and q.is_floating_point(),
        OP,
        lambda: f"q, k and v share one floating dtype, got {q.dtype}, {k.dtype}, {v.dtype}",
    )
    require(k.shape == v.shape, OP, lambda: f"k is {list(k.shape)}, v is {list(v.shape)}")
    require(
        q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3] and q.shape[3] > 0,
        OP,
        lambda: (
            f"q {list(q.shape)} and k {list(k.shape)} differ in rows or head dimension, or have "
            "none"
        ),
    )
    require(
        k.shape[2] > 0 and q.shape[2] > 0 and q.shape[2] % k.shape[2] == 0,
        OP,
        lambda: f"{q.shape[2]} query heads on {k.shape[2]} key heads",
    )
    require(
        offset is not None or q.shape[1] == k.shape[1],
        OP,
        lambda: f"{q.shape[1]} queries on {k.shape[1]} keys need an offset",
    )
    require(
        scale is None or 0 < scale < math.inf,
        OP,
        lambda: f"scale is {scale}, must be positive and finite",
    )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(3) != 1 and x.shape[3] != 1:
            require(
                False,
                OP,
                f"{name}'s last stride is {x.stride(3)}, must be 1; next: {name}.contiguous()",
            )
    for name, tensor, shape in (
        ("kv_start", kv_start, q.shape[:2]),
        ("offset", offset, q.shape[:1]),
    ):
        if tensor is not None and (
            tensor.shape != shape or tensor.dtype not in (torch.int32, torch.int64)
        ):
            require(
                False,
                OP,
                f"{name} is {list(tensor.shape)} {tensor.dtype}, must be int32 or int64 "
                f"{list(shape)}",
            )
    for name, other in (("k", k), ("v", v), ("kv_start", kv_start), ("offset", offset)):
        if other is not None and other.device != q.device:
            require(False, OP, f"{name} is on {other.device}, q on {q.device}")
