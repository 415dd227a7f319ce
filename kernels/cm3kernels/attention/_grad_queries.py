"""Gradient of queries: one program has a tile of queries of one head, and loops over tiles of keys
as the forward pass does. Formulas: `_backward.py`; legend: `_tiles.py`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.attention._tiles import (
    LOG2E,
    key_tiles,
    load_tile,
    query_range,
    store_tile,
    visible,
)


@triton.jit
def _grad_query_tiles(
    grad_q,
    q,
    grad,
    lse,
    delta,
    k_ptr,
    v_ptr,
    k_token,
    v_token,
    start,
    last,
    key_lo,
    key_hi,
    first_tile,
    num_tiles,
    gap_at,
    gap,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the contributions of `num_tiles` tiles of keys; `lse` is in units of log2."""
    for index in tl.range(0, num_tiles):
        tile = first_tile + index
        if MASKED:
            tile += tl.where(tile < gap_at, 0, gap)
        first = tile * BLOCK_K
        key = first + tl.arange(0, BLOCK_K)
        needed = (key >= key_lo) & (key < key_hi)
        k = load_tile(k_ptr, first, k_token, needed, BLOCK_K, HEAD_DIM, BLOCK_D, MASKED)
        v = load_tile(v_ptr, first, v_token, needed, BLOCK_K, HEAD_DIM, BLOCK_D, MASKED)
        weights = tl.math.exp2(
            tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None]
        )
        if MASKED:
            weights = tl.where(visible(start, last, key, HAS_START), weights, 0.0)
        grad_scores = weights * (
            tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None]
        )
        grad_q = tl.dot(
            grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION, out_dtype=grad_q.dtype
        )
    return grad_q


@triton.jit(do_not_specialize=["T"])
def grad_queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    start_ptr,
    grad_q_ptr,
    q_row,
    q_token,
    q_head,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    g_row,
    g_token,
    g_head,
    T,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_START: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, H, B). grad_q [B, T, H, D] contiguous."""
    inner: tl.constexpr = tl.float64 if WIDE else tl.float32
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    first = tile * BLOCK_Q
    query = first + tl.arange(0, BLOCK_Q)
    start, last, offset = query_range(start_ptr, start_ptr, row, query, T, T, HAS_START, False)
    key_lo, key_hi, lo, whole, num_whole, num_partial = key_tiles(
        start, last, offset, query, first, T, T, BLOCK_Q, BLOCK_K, HAS_START
    )

    k_ptr += row * k_row + (head // GROUP).to(tl.int64) * k_head
    v_ptr += row * v_row + (head // GROUP).to(tl.int64) * v_head
    q = load_tile(
        q_ptr + row * q_row + head.to(tl.int64) * q_head,
        first,
        q_token,
        query < T,
        BLOCK_Q,
        HEAD_DIM,
        BLOCK_D,
        True,
    )
    grad = load_tile(
        grad_ptr + row * g_row + head.to(tl.int64) * g_head,
        first,
        g_token,
        query < T,
        BLOCK_Q,
        HEAD_DIM,
        BLOCK_D,
        True,
    )
    at = (row * num_heads + head) * T + query
    lse = tl.load(lse_ptr + at, mask=query < T, other=0.0) * LOG2E
    delta = tl.load(delta_ptr + at, mask=query < T, other=0.0)
    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], inner)
    grad_q = _grad_query_tiles(
        grad_q,
        q,
        grad,
        lse,
        delta,
        k_ptr,
        v_ptr,
        k_token,
        v_token,
        start,
        last,
        key_lo,
        key_hi,
        whole,
        num_whole,
        0,
        0,
        scale * LOG2E,
        HEAD_DIM,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        False,
    )
    grad_q = _grad_query_tiles(
        grad_q,
        q,
        grad,
        lse,
        delta,
        k_ptr,
        v_ptr,
        k_token,
        v_token,
        start,
        last,
        key_lo,
        key_hi,
        lo,
        num_partial,
        whole,
        num_whole,
        scale * LOG2E,
        HEAD_DIM,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        True,
    )
    store_tile(
        grad_q_ptr + (row * T * num_heads + head) * HEAD_DIM,
        first,
        num_heads * HEAD_DIM,
        query < T,
        grad_q * scale,
        BLOCK_Q,
        HEAD_DIM,
        BLOCK_D,
    )
