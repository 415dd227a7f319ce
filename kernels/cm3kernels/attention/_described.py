"""The attention kernel's forward pass with keys and values loaded by tensor descriptors: on sm_90 and newer by the
tensor memory accelerator (TMA), which needs no registers for addresses and fills with zeros what is outside of the
tensor. The arithmetic and its order are those of `_forward.py`: with equal tiles, the results have equal bits. Legend:
`_tiles.py`.

A descriptor is made on the host, of the whole tensor [B, S, K, D]: one in the kernel would be made by every program,
in memory that the caller must provide. Queries, which a program loads once, come by pointers: those of a descriptor
were kept in registers (210 instead of 175 at head dimension 128).
"""

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
def _attend_described(
    acc,
    total,
    top,
    q,
    k_descriptor,
    v_descriptor,
    row,
    head,
    start,
    last,
    key_lo,
    key_hi,
    first_tile,
    num_tiles,
    gap_at,
    gap,
    scale,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """As `_forward._attend_tiles`; `head` is the key head. Values that no query sees are set to zero after they were
    loaded, since they may be NaN; such keys are masked by their scores."""
    for index in tl.range(0, num_tiles):
        tile = first_tile + index
        if MASKED:
            tile += tl.where(tile < gap_at, 0, gap)
        first = tile * BLOCK_K
        key = first + tl.arange(0, BLOCK_K)
        k = k_descriptor.load([row, first, head, 0]).reshape(BLOCK_K, BLOCK_D)
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
        v = v_descriptor.load([row, first, head, 0]).reshape(BLOCK_K, BLOCK_D)
        if MASKED:
            needed = (key >= key_lo) & (key < key_hi)
            v = tl.where(needed[:, None], v, 0.0)
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
def described_kernel(
    q_ptr,
    k_descriptor,
    v_descriptor,
    start_ptr,
    offset_ptr,
    out_ptr,
    lse_ptr,
    q_row,
    q_token,
    q_head,
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
    PRECISION: tl.constexpr,
):
    """Grid and results as of `_forward.forward_kernel`. A descriptor's block is [1, BLOCK_K, 1, BLOCK_D]."""
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
    q = load_tile(q_ptr, first, q_token, query < T, BLOCK_Q, HEAD_DIM, BLOCK_D, True)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    top = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    log2_scale = scale * LOG2E
    acc, total, top = _attend_described(
        acc,
        total,
        top,
        q,
        k_descriptor,
        v_descriptor,
        tl.program_id(2),
        head // GROUP,
        start,
        last,
        key_lo,
        key_hi,
        whole,
        num_whole,
        0,
        0,
        log2_scale,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        False,
    )
    acc, total, top = _attend_described(
        acc,
        total,
        top,
        q,
        k_descriptor,
        v_descriptor,
        tl.program_id(2),
        head // GROUP,
        start,
        last,
        key_lo,
        key_hi,
        lo,
        num_partial,
        whole,
        num_whole,
        log2_scale,
        BLOCK_K,
        BLOCK_D,
        HAS_START,
        PRECISION,
        True,
    )

    # As in `_forward.py`: only an empty sum is exactly 0.
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
