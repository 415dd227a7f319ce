"""The attention kernels as PyTorch operators, `cm3::attention` and `cm3::attention_backward`, with
their launches.

Legend: B rows, T queries, S keys, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from cm3kernels._host import device_of, require
from cm3kernels.attention._aot import aot_entries
from cm3kernels.attention._backward import delta_kernel
from cm3kernels.attention._forward import forward_kernel
from cm3kernels.attention._grad_keys import grad_keys_kernel
from cm3kernels.attention._grad_queries import grad_queries_kernel
from cm3kernels.attention.configs import DELTA, MOST_DECODED, Launch, block_d, launch
from cm3kernels.attention.plan import AttentionPlan, query_tiles

OP = "attention"
#: A row's address within a tile is a 32-bit product with the stride.
LARGEST_TOKEN_STRIDE = 2**24
#: The second and third dimension of a CUDA grid.
LARGEST_GRID = 65_535
#: Positions and their sums with an offset are 32-bit.
MOST_TOKENS = 2**29

__all__ = ["aot_entries", "attention_backward_op", "attention_op", "attention_triton"]


def attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.attention`; always returns lse, since it costs nothing."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        require(
            max(x.stride(1), 0) < LARGEST_TOKEN_STRIDE,
            OP,
            f"{name}'s tokens are {x.stride(1)} elements apart, must be under "
            f"{LARGEST_TOKEN_STRIDE}; "
            f"next: {name}.contiguous()",
        )
    require(
        max(q.shape[0], q.shape[2]) <= LARGEST_GRID and max(q.shape[1], k.shape[1]) < MOST_TOKENS,
        OP,
        f"q is {list(q.shape)}, must have at most {LARGEST_GRID} rows and heads, and fewer than "
        f"{MOST_TOKENS} tokens",
    )
    tiles = counts = None
    if torch.is_grad_enabled() and plan.offset is None and any(x.requires_grad for x in (q, k, v)):
        shape = launch("grad_keys", q)
        tiles, counts = plan.query_tiles(shape.block_q, shape.block_k) or (None, None)
    out, lse = torch.ops.cm3.attention(
        q, k, v, plan.narrow_start(), plan.narrow_offset(), tiles, counts, scale
    )
    return out, lse


@torch.library.custom_op("cm3::attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    offset: Tensor | None,
    tiles: Tensor | None,
    counts: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """out [B, T, H, D] and lse [B, H, T] of the forward kernel; `tiles` and `counts` are
    `query_tiles`, for the backward."""
    out, lse = _fake_attention(q, k, v, start, offset, tiles, counts, scale)
    B, T, H, _ = q.shape
    if out.numel() == 0:
        return out, lse
    shape = launch("decode" if T <= MOST_DECODED else "forward", q)
    with device_of(q):
        forward_kernel[triton.cdiv(T, shape.block_q), H, B](
            q,
            k,
            v,
            q if start is None else start,
            q if offset is None else offset,
            out,
            lse,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            T,
            k.shape[1],
            scale,
            BLOCK_Q=shape.block_q,
            BLOCK_K=shape.block_k,
            HAS_START=start is not None,
            HAS_OFFSET=offset is not None,
            num_warps=shape.num_warps,
            num_stages=shape.num_stages,
            GROUP=H // k.shape[2],
            **_constants(q, shape),
        )
    return out, lse


@attention_op.register_fake
def _fake_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor | None,
    offset: Tensor | None,
    tiles: Tensor | None,
    counts: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(
        (B, H, T), dtype=torch.promote_types(q.dtype, torch.float32)
    )


@torch.library.custom_op("cm3::attention_backward", mutates_args=())
def attention_backward_op(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    start: Tensor | None,
    tiles: Tensor | None,
    counts: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous. `grad` may be strided, as autograd passes it; `tiles`
    are made if missing."""
    grad_q, grad_k, grad_v = _fake_attention_backward(
        grad, grad_lse, q, k, v, out, lse, start, tiles, counts, scale
    )
    if q.numel() == 0:
        return grad_q, grad_k, grad_v
    # The gradient of a sum is one number at stride 0: the kernels need a last stride of 1.
    grad = (
        grad if grad.stride(3) == 1 and grad.stride(1) < LARGEST_TOKEN_STRIDE else grad.contiguous()
    )
    with device_of(q):
        _launch_backward(
            grad,
            None if grad_lse is None else grad_lse.contiguous(),
            q,
            k,
            v,
            out,
            lse,
            torch.empty_like(lse),
            start,
            tiles,
            counts,
            scale,
            grad_q,
            grad_k,
            grad_v,
        )
    return grad_q, grad_k, grad_v


def _launch_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    delta: Tensor,
    start: Tensor | None,
    tiles: Tensor | None,
    counts: Tensor | None,
    scale: float,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    B, T, H, D = q.shape
    K = k.shape[2]
    keys, queries = launch("grad_keys", q), launch("grad_queries", q)
    if start is not None and (tiles is None or counts is None):
        tiles, counts = query_tiles(start, keys.block_q, keys.block_k)
    delta_kernel[triton.cdiv(T, DELTA.block_q), H, B](
        out,
        grad,
        lse,
        lse if grad_lse is None else grad_lse,
        delta,
        *grad.stride()[:3],
        T,
        HEAD_DIM=D,
        BLOCK_D=block_d(D),
        BLOCK_Q=DELTA.block_q,
        HAS_GRAD_LSE=grad_lse is not None,
        WIDE=q.dtype == torch.float64,
        num_warps=DELTA.num_warps,
    )
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3])
    constants = {"HAS_START": start is not None, "GROUP": H // K}
    begin, tiles, counts = (lse if x is None else x for x in (start, tiles, counts))
    grad_keys_kernel[triton.cdiv(T, keys.block_k), K, B](
        q,
        k,
        v,
        grad,
        lse,
        delta,
        begin,
        tiles,
        counts,
        grad_k,
        grad_v,
        *strides,
        T,
        scale,
        BLOCK_Q=keys.block_q,
        BLOCK_K=keys.block_k,
        num_warps=keys.num_warps,
        num_stages=keys.num_stages,
        **constants,
        **_constants(q, keys),
    )
    grad_queries_kernel[triton.cdiv(T, queries.block_q), H, B](
        q,
        k,
        v,
        grad,
        lse,
        delta,
        begin,
        grad_q,
        *strides,
        T,
        scale,
        BLOCK_Q=queries.block_q,
        BLOCK_K=queries.block_k,
        num_warps=queries.num_warps,
        num_stages=queries.num_stages,
        **constants,
        **_constants(q, queries),
    )


@attention_backward_op.register_fake
def _fake_attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    start: Tensor | None,
    tiles: Tensor | None,
    counts: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, start, offset, tiles, counts, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, start, tiles, counts)
    ctx.cached = offset is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.cached:
        raise RuntimeError(
            "attention: the Triton kernels have no backward with an offset (cached decoding)\n"
            "  next: call them under torch.no_grad(), or use implementation='sdpa'"
        )
    q, k, v, out, lse, start, tiles, counts = ctx.saved_tensors
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if grad is not None or grad_lse is not None:
        grad = torch.zeros_like(out) if grad is None else grad
        grads = torch.ops.cm3.attention_backward(
            grad, grad_lse, q, k, v, out, lse, start, tiles, counts, ctx.scale
        )
    return (*grads, None, None, None, None, None)


attention_op.register_autograd(_backward, setup_context=_setup_context)


def _constants(q: Tensor, shape: Launch) -> dict[str, Any]:
    return {
        "HEAD_DIM": q.shape[3],
        "BLOCK_D": block_d(q.shape[3]),
        "WIDE": q.dtype == torch.float64,
        "PRECISION": shape.precision,
    }
