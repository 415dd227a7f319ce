"""Shared by the attention kernels: loading a tile, and finding the keys that a tile of
queries sees.

Legend of all kernels: row b, query head h, key head h // GROUP; a tile is BLOCK_Q queries or
BLOCK_K keys, its second dimension BLOCK_D >= HEAD_DIM. `*_row`, `*_token`, `*_head` are strides in
elements; the head dimension's is 1. Scores are in units of log2: exp2 is the hardware's
exponential.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
#: As `plan.FAR`: the start of queries that see nothing.
FAR = tl.constexpr(2**30)


@triton.jit
def load_tile(
    pointer,
    first,
    stride,
    needed,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """[BLOCK, BLOCK_D] from token `first` on; zeros where not `needed` [BLOCK] (MASKED) and past
    the head dimension."""
    token = tl.arange(0, BLOCK)
    dim = tl.arange(0, BLOCK_D)
    pointers = pointer + first.to(tl.int64) * stride + (token[:, None] * stride + dim[None, :])
    if MASKED:
        tile = tl.load(pointers, mask=needed[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        tile = tl.load(pointers, mask=(dim < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    pointer,
    first,
    stride,
    needed,
    tile,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The reverse: tokens that are `needed`, in the pointer's dtype."""
    token = tl.arange(0, BLOCK)
    dim = tl.arange(0, BLOCK_D)
    pointers = pointer + first.to(tl.int64) * stride + (token[:, None] * stride + dim[None, :])
    tl.store(
        pointers,
        tile.to(pointer.dtype.element_ty),
        mask=needed[:, None] & (dim < HEAD_DIM)[None, :],
    )


@triton.jit
def query_range(
    start_ptr, offset_ptr, row, query, T, S, HAS_START: tl.constexpr, HAS_OFFSET: tl.constexpr
):
    """First and last key that each query sees, int32 [BLOCK_Q] each, first > last: none; and the
    row's offset.

    Without starts `start` is 0 for all, including queries past T: their results are not stored.
    """
    offset = 0
    if HAS_OFFSET:
        offset += tl.load(offset_ptr + row)
    last = tl.minimum(query + offset, S - 1)
    start = tl.zeros_like(query)
    if HAS_START:
        start = tl.maximum(tl.load(start_ptr + row * T + query, mask=query < T, other=FAR), 0)
    return start, last, offset


@triton.jit
def key_tiles(
    start,
    last,
    offset,
    query,
    first,
    T,
    S,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_START: tl.constexpr,
):
    """The keys that the tile of queries from `first` on sees, and how its loop over tiles of keys
    is split.

    Returns, all scalars:
        key_lo, key_hi: the first key that any query sees, and one past the last; no other is read.
        lo: the first tile. whole, num_whole: the run of tiles that are fully visible to every
            query. num_partial: the number of all others.
        The partial loop visits tile lo + index, and from `whole` on skips the run: lo + index +
            num_whole.
    """
    lowest_last = tl.maximum(tl.minimum(first + offset, S - 1), -1)
    if HAS_START:
        sees = start <= last
        key_lo = tl.min(tl.where(sees, start, FAR))
        key_hi = tl.max(tl.where(sees, last + 1, 0))
        highest_start = tl.max(tl.where(query < T, start, 0))
    else:
        key_lo = 0
        key_hi = tl.maximum(tl.minimum(tl.minimum(first + BLOCK_Q, T) + offset, S), 0)
        highest_start = 0
    end = tl.cdiv(key_hi, BLOCK_K)
    lo = tl.minimum(key_lo // BLOCK_K, end)
    whole = tl.minimum(tl.maximum(tl.cdiv(highest_start, BLOCK_K), lo), end)
    num_whole = tl.maximum(tl.minimum((lowest_last + 1) // BLOCK_K, end) - whole, 0)
    return key_lo, key_hi, lo, whole, num_whole, end - lo - num_whole


@triton.jit
def visible(start, last, key, HAS_START: tl.constexpr):
    """Bool [BLOCK_Q, BLOCK_K]. Without starts, the results of queries past T are not stored."""
    seen = key[None, :] <= last[:, None]
    if HAS_START:
        seen &= key[None, :] >= start[:, None]
    return seen
