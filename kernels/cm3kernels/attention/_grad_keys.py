"""Gradients of keys and values: one program has a tile of keys of one key head, and loops over the
query heads of its group and the tiles of queries that see the tile. Formulas: `_backward.py`;
legend: `_tiles.py`.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.attention._tiles import FAR, LOG2E, load_tile, store_tile


@triton.jit
def _grad_key_tiles(
    grad_k,
    grad_v,
    k,
    v,
    q_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    start_ptr,
    tiles_ptr,
    q_token,
    q_head,
    g_token,
    g_head,
    T,
    key,
    first_tile,
    begin,
    num_tiles,
    gap_at,
    gap,
    scale,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Add the contributions of `num_tiles` tiles of queries, from number `begin` on, one query head
    of the group after the other, in one loop: a nested one keeps too much in registers. Everything
    is [BLOCK_K, ...], with queries in columns."""
    for step in tl.range(0, num_tiles * GROUP):
        index = step
        q_at, grad_at, lse_at, delta_at = q_ptr, grad_ptr, lse_ptr, delta_ptr
        if GROUP > 1:
            member = (step // num_tiles).to(tl.int64)
            index = step % num_tiles
            q_at += member * q_head
            grad_at += member * g_head
            lse_at += member * T
            delta_at += member * T
        if HAS_START:
            tile = tl.load(tiles_ptr + begin + index)
        else:
            tile = first_tile + index
            if MASKED:
                tile += tl.where(tile < gap_at, 0, gap)
        first = tile * BLOCK_Q
        query = first + tl.arange(0, BLOCK_Q)
        q = load_tile(q_at, first, q_token, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, MASKED)
        if MASKED:
            lse = tl.load(lse_at + query, mask=query < T, other=0.0)
        else:
            lse = tl.load(lse_at + query)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weights = tl.math.exp2(scores * scale - (lse * LOG2E)[None, :])
        if MASKED:
            seen = (key[:, None] <= query[None, :]) & (query < T)[None, :]
            if HAS_START:
                seen &= (
                    key[:, None] >= tl.load(start_ptr + query, mask=query < T, other=FAR)[None, :]
                )
            weights = tl.where(seen, weights, 0.0)
        grad = load_tile(grad_at, first, g_token, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, MASKED)
        grad_v = tl.dot(
            weights.to(grad.dtype), grad, grad_v, input_precision=PRECISION, out_dtype=grad_v.dtype
        )
        if MASKED:
            delta = tl.load(delta_at + query, mask=query < T, other=0.0)
        else:
            delta = tl.load(delta_at + query)
        grad_scores = weights * (
            tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :]
        )
        if MASKED:
            # Needed where a key that no query sees holds NaN: 0 * NaN.
            grad_scores = tl.where(seen, grad_scores, 0.0)
        grad_k = tl.dot(
            grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION, out_dtype=grad_k.dtype
        )
    return grad_k, grad_v


@triton.jit(do_not_specialize=["T"])
def grad_keys_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    start_ptr,
    tiles_ptr,
    counts_ptr,
    grad_k_ptr,
    grad_v_ptr,
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
    """Grid (tiles of keys, K, B): the first tiles of keys have the longest loops. grad_k, grad_v
    [B, T, K, D] contiguous."""
    inner: tl.constexpr = tl.float64 if WIDE else tl.float32
    tile, num_tiles = tl.program_id(0), tl.num_programs(0)
    key_head, num_key_heads = tl.program_id(1), tl.num_programs(1)
    row = tl.program_id(2).to(tl.int64)
    first = tile * BLOCK_K
    key = first + tl.arange(0, BLOCK_K)
    num_query_tiles = tl.cdiv(T, BLOCK_Q)
    if HAS_START:
        tiles_ptr += (row * num_tiles + tile) * num_query_tiles
        start_ptr += row * T
        lo, whole = 0, 0
        num_whole = tl.load(counts_ptr + (row * num_tiles + tile) * 2)
        num_some = tl.load(counts_ptr + (row * num_tiles + tile) * 2 + 1)
        partial, num_partial = num_whole, num_some - num_whole
    else:
        # From the diagonal to the end; fully visible tiles come after the last key and have all
        # their queries.
        lo = first // BLOCK_Q
        whole = tl.minimum(tl.cdiv(first + BLOCK_K - 1, BLOCK_Q), num_query_tiles)
        num_whole = tl.maximum(T // BLOCK_Q - whole, 0)
        partial, num_partial = 0, num_query_tiles - lo - num_whole

    k_ptr += row * k_row + key_head.to(tl.int64) * k_head
    v_ptr += row * v_row + key_head.to(tl.int64) * v_head
    k = load_tile(k_ptr, first, k_token, key < T, BLOCK_K, HEAD_DIM, BLOCK_D, True)
    v = load_tile(v_ptr, first, v_token, key < T, BLOCK_K, HEAD_DIM, BLOCK_D, True)
    grad_k = tl.zeros([BLOCK_K, BLOCK_D], inner)
    grad_v = tl.zeros([BLOCK_K, BLOCK_D], inner)
    head = (key_head * GROUP).to(tl.int64)
    q_ptr += row * q_row + head * q_head
    grad_ptr += row * g_row + head * g_head
    lse_ptr += (row * num_key_heads * GROUP + head) * T
    delta_ptr += (row * num_key_heads * GROUP + head) * T
    grad_k, grad_v = _grad_key_tiles(
        grad_k,
        grad_v,
        k,
        v,
        q_ptr,
        grad_ptr,
        lse_ptr,
        delta_ptr,
        start_ptr,
        tiles_ptr,
        q_token,
        q_head,
        g_token,
        g_head,
        T,
        key,
        whole,
        0,
        num_whole,
        0,
        0,
        scale * LOG2E,
        GROUP,
        HEAD_DIM,
        BLOCK_Q,
        BLOCK_D,
        HAS_START,
        PRECISION,
        False,
    )
    grad_k, grad_v = _grad_key_tiles(
        grad_k,
        grad_v,
        k,
        v,
        q_ptr,
        grad_ptr,
        lse_ptr,
        delta_ptr,
        start_ptr,
        tiles_ptr,
        q_token,
        q_head,
        g_token,
        g_head,
        T,
        key,
        lo,
        partial,
        num_partial,
        whole,
        num_whole,
        scale * LOG2E,
        GROUP,
        HEAD_DIM,
        BLOCK_Q,
        BLOCK_D,
        HAS_START,
        PRECISION,
        True,
    )

    out = (row * T * num_key_heads + key_head) * HEAD_DIM
    stride = num_key_heads * HEAD_DIM
    store_tile(grad_k_ptr + out, first, stride, key < T, grad_k * scale, BLOCK_K, HEAD_DIM, BLOCK_D)
    store_tile(grad_v_ptr + out, first, stride, key < T, grad_v, BLOCK_K, HEAD_DIM, BLOCK_D)
