"""The attention kernel's forward pass: online softmax over the tiles of keys that a tile of queries
sees. Legend: `_tiles.py`."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.attention._tiles import (
    LN2,
    LOG2E,
    key_tiles,
    load_tile,
    query_range,
    store_tile,
    visible,
)


@triton.jit
def _attend_tiles(
    acc,
    total,
    top,
    q,
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
    """`num_tiles` steps of online softmax. State: weighted sum `acc`, sum of weights `total`,
    running maximum `top`."""
    for index in tl.range(0, num_tiles):
        tile = first_tile + index
        if MASKED:
            tile += tl.where(tile < gap_at, 0, gap)
        first = tile * BLOCK_K
        key = first + tl.arange(0, BLOCK_K)
        needed = (key >= key_lo) & (key < key_hi)
        k = load_tile(k_ptr, first, k_token, needed, BLOCK_K, HEAD_DIM, BLOCK_D, MASKED)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            scores = tl.where(visible(start, last, key, HAS_START), scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        shift = new_top
        if MASKED:
            # For a query that has seen nothing yet: -inf - -inf would be NaN.
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.math.exp2(scores * scale - shift[:, None])
        decay = tl.math.exp2(top - shift)
        v = load_tile(v_ptr, first, v_token, needed, BLOCK_K, HEAD_DIM, BLOCK_D, MASKED)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(
            weights.to(v.dtype),
            v,
            acc * decay[:, None],
            input_precision=PRECISION,
            out_dtype=acc.dtype,
        )
        top = new_top
    return acc, total, top


@triton.jit(do_not_specialize=["T", "S"])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    start_ptr,
    offset_ptr,
    out_ptr,
    lse_ptr,
    q_row,
    q_token,
    q_head,
    k_row,
    k_token,
    k_head,
    v_row,
    v_token,
    v_head,
    T,
    S,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (tiles of queries, H, B). `scale` is not in units of log2. out [B, T, H, D] and lse [B,
    H, T] are contiguous."""
    inner: tl.constexpr = tl.float64 if WIDE else tl.float32
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest loops start first
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    first = tile * BLOCK_Q
    query = first + tl.arange(0, BLOCK_Q)
    start, last, offset = query_range(
        start_ptr, offset_ptr, row, query, T, S, HAS_START, HAS_OFFSET
    )
    key_lo, key_hi, lo, whole, num_whole, num_partial = key_tiles(
        start, last, offset, query, first, T, S, BLOCK_Q, BLOCK_K, HAS_START
    )

    q_ptr += row * q_row + head.to(tl.int64) * q_head
    k_ptr += row * k_row + (head // GROUP).to(tl.int64) * k_head
    v_ptr += row * v_row + (head // GROUP).to(tl.int64) * v_head
    q = load_tile(q_ptr, first, q_token, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, True)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], inner)
    total = tl.zeros([BLOCK_Q], inner)
    top = tl.full([BLOCK_Q], float("-inf"), inner)
    log2_scale = scale * LOG2E
    acc, total, top = _attend_tiles(
        acc,
        total,
        top,
        q,
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
        log2_scale,
        HEAD_DIM,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        False,
    )
    acc, total, top = _attend_tiles(
        acc,
        total,
        top,
        q,
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
        log2_scale,
        HEAD_DIM,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        True,
    )

    # Only an empty sum is exactly 0 (the largest weight is about 1): then out is 0, and lse is
    # `top`, -inf. NaN stays NaN.
    total = tl.where(total == 0.0, 1.0, total)
    lse = (top + tl.math.log2(total)) * LN2
    out_ptr += (row * T * num_heads + head) * HEAD_DIM
    store_tile(
        out_ptr,
        first,
        num_heads * HEAD_DIM,
        query < T,
        acc / total[:, None],
        BLOCK_Q,
        HEAD_DIM,
        BLOCK_D,
    )
    tl.store(lse_ptr + (row * num_heads + head) * T + query, lse, mask=query < T)
