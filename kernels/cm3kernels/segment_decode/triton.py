"""Decode attention over segments: one launch over the plan's work list, and one that merges the
partial results.

An item is a split of a segment for some of its rows. Their query heads of one key head are the rows
of the tile, so keys and values are read once for all of them. Lengths are read on the device.
Scores are in base 2: exp2 is one instruction.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3kernels._host import device_of, require
from cm3kernels.segment_decode.configs import (
    CONFIGS,
    HEAD_DIMS,
    LARGEST_HEAD_DIM,
    block_dim,
    config_of,
)
from cm3kernels.segment_decode.plan import MAX_TILE, SegmentPlan

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
#: Partial results that the merge reads at once.
MERGE_BLOCK = 16


@triton.jit
def _rows(base, slot, stride, d, filled, in_head):
    """Keys or values [slots, columns]; 0 where there is none."""
    place = base + slot.to(tl.int64)[:, None] * stride + d[None, :]
    return tl.load(place, mask=filled[:, None] & in_head[None, :], other=0.0)


@triton.jit
def _segment_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    lengths_ptr,
    items_ptr,
    item_rows_ptr,
    part_out_ptr,
    part_lse_ptr,
    scale_log2,
    q_row,
    q_head,
    keys_slot,
    keys_head,
    values_slot,
    values_head,
    num_heads,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    item = items_ptr + tl.program_id(0) * 6
    key_head = tl.program_id(1).to(tl.int64)
    segment = tl.load(item)
    start = tl.load(item + 1).to(tl.int64)
    first = tl.load(item + 2)
    end = tl.minimum(first + tl.load(item + 3), tl.load(lengths_ptr + segment))
    rows_begin = tl.load(item + 4).to(tl.int64)
    num_rows = tl.load(item + 5)

    m = tl.arange(0, TILE)
    d = tl.arange(0, BLOCK_D)
    in_tile = m < num_rows * GROUP
    in_head = d < D
    part = rows_begin + m // GROUP
    head = key_head * GROUP + m % GROUP
    row = tl.load(item_rows_ptr + part, mask=in_tile, other=0).to(tl.int64)
    q = tl.load(
        q_ptr + (row * q_row + head * q_head)[:, None] + d[None, :],
        mask=in_tile[:, None] & in_head[None, :],
        other=0.0,
    )

    largest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    out = tl.zeros([TILE, BLOCK_D], tl.float32)
    keys_base = keys_ptr + key_head * keys_head
    values_base = values_ptr + key_head * values_head
    for key in range(first, end, BLOCK_KEYS):
        n = key + tl.arange(0, BLOCK_KEYS)
        filled = n < end
        slot = start + n
        k = _rows(keys_base, slot, keys_slot, d, filled, in_head)
        if TILE >= 64:  # else it spills on sm_120, and smaller tiles on sm_80 if they do it
            v = _rows(values_base, slot, values_slot, d, filled, in_head)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(filled[None, :], scores, float("-inf"))
        # a split that is read has a key: finite
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, 1)
        if TILE < 64:
            v = _rows(values_base, slot, values_slot, d, filled, in_head)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision="ieee")
        largest = new_largest

    read = end > first
    lse = tl.where(read, largest + tl.log2(tl.where(read, total, 1.0)), float("-inf"))
    place = part * num_heads + head
    tl.store(part_lse_ptr + place, lse, mask=in_tile)
    out = out / tl.where(read, total, 1.0)[:, None]
    tl.store(
        part_out_ptr + place[:, None] * D + d[None, :],
        out,
        mask=in_tile[:, None] & in_head[None, :] & read,
    )


@triton.jit
def _merge_kernel(
    part_out_ptr,
    part_lse_ptr,
    merge_begin_ptr,
    merge_partials_ptr,
    out_ptr,
    num_heads,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    in_head = d < D
    begin = tl.load(merge_begin_ptr + row)
    end = tl.load(merge_begin_ptr + row + 1)
    largest = tl.max(tl.full([BLOCK_PARTS], float("-inf"), tl.float32), 0)
    total = tl.sum(tl.zeros([BLOCK_PARTS], tl.float32), 0)
    out = tl.zeros([BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK_PARTS):
        n = first + tl.arange(0, BLOCK_PARTS)
        place = (
            tl.load(merge_partials_ptr + n, mask=n < end, other=0).to(tl.int64) * num_heads + head
        )
        lse = tl.load(part_lse_ptr + place, mask=n < end, other=float("-inf"))
        new_largest = tl.maximum(largest, tl.max(lse, 0))
        # nothing so far: -inf - -inf would be NaN
        safe = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(lse - safe)
        shrink = tl.exp2(largest - safe)
        # An item without keys leaves its result unwritten. (Via an integer: the interpreter keeps
        # comparisons of floats as floats.)
        written = tl.where(lse > float("-inf"), 1, 0) == 1
        part = tl.load(
            part_out_ptr + place[:, None] * D + d[None, :],
            mask=written[:, None] & in_head[None, :],
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 0)
        out = out * shrink + tl.sum(weights[:, None] * part, 0)
        largest = new_largest
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(
        out_ptr + (row * num_heads + head) * D + d, out.to(out_ptr.dtype.element_ty), mask=in_head
    )


@torch.library.custom_op("cm3::segment_decode", mutates_args=())
def _segment_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    items: Tensor,
    item_rows: Tensor,
    merge_begin: Tensor,
    merge_partials: Tensor,
    tile: int,
    scale: float,
) -> Tensor:
    with device_of(q):
        return _launch(
            q, keys, values, lengths, items, item_rows, merge_begin, merge_partials, tile, scale
        )


def _launch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    items: Tensor,
    item_rows: Tensor,
    merge_begin: Tensor,
    merge_partials: Tensor,
    tile: int,
    scale: float,
) -> Tensor:
    num_rows, num_heads, dim = q.shape
    config = config_of(dim, q.element_size())
    part_out = torch.empty(len(item_rows), num_heads, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(len(item_rows), num_heads, dtype=torch.float32, device=q.device)
    out = torch.empty(num_rows, num_heads, dim, dtype=q.dtype, device=q.device)
    if len(items):
        _segment_kernel[len(items), keys.shape[1]](
            q,
            keys,
            values,
            lengths,
            items,
            item_rows,
            part_out,
            part_lse,
            scale * LOG2_E.value,
            q.stride(0),
            q.stride(1),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            num_heads,
            GROUP=num_heads // keys.shape[1],
            D=dim,
            TILE=tile,
            BLOCK_KEYS=config.block_keys,
            BLOCK_D=block_dim(dim),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    if num_rows:
        _merge_kernel[num_rows, num_heads](
            part_out,
            part_lse,
            merge_begin,
            merge_partials,
            out,
            num_heads,
            D=dim,
            BLOCK_D=block_dim(dim),
            BLOCK_PARTS=MERGE_BLOCK,
            num_warps=4,
        )
    return out


@_segment_decode.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    items: Tensor,
    item_rows: Tensor,
    merge_begin: Tensor,
    merge_partials: Tensor,
    tile: int,
    scale: float,
) -> Tensor:
    return q.new_empty(q.shape)


def segment_decode_triton(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    plan: SegmentPlan,
    *,
    scale: float | None = None,
) -> Tensor:
    """See `cm3kernels.segment_decode`. Two launches, no synchronisation: can be captured in a CUDA
    graph."""
    op, dim = "segment_decode", q.shape[2]
    require(
        dim <= LARGEST_HEAD_DIM,
        op,
        f"head dimension {dim}, 'triton' supports up to {LARGEST_HEAD_DIM}; next: "
        "implementation='reference'",
    )
    require(
        q.dtype in (torch.float32, torch.float16, torch.bfloat16),
        op,
        f"dtype {q.dtype}, 'triton' supports float32, float16, bfloat16; next: "
        "implementation='reference'",
    )
    require(
        plan.tile > 0,
        op,
        f"{plan.num_query_heads // plan.num_key_heads} query heads on each key head, 'triton' "
        "has at most "
        f"{MAX_TILE}; next: implementation='reference'",
    )
    out: Tensor = _segment_decode(
        q,
        keys,
        values,
        lengths,
        plan.items,
        plan.item_rows,
        plan.merge_begin,
        plan.merge_partials,
        plan.tile,
        1 / math.sqrt(dim) if scale is None else float(scale),
    )
    return out


def aot_entries() -> list[AotEntry]:
    """Head dimensions, dtypes (float16 compiles to the same code as bfloat16), tiles."""
    from cm3kernels.aot import ARCHS, AotEntry

    entries = []
    pointers = (
        "q_ptr",
        "keys_ptr",
        "values_ptr",
        "lengths_ptr",
        "items_ptr",
        "item_rows_ptr",
        "part_out_ptr",
        "part_lse_ptr",
    )
    strides = ("q_row", "q_head", "keys_slot", "keys_head", "values_slot", "values_head")
    for (dim, num_bytes), config in CONFIGS.items():
        dtype = {2: "bf16", 4: "fp32"}[num_bytes]
        types = (
            dict.fromkeys(pointers[:3], f"*{dtype}")
            | dict.fromkeys(pointers[3:6], "*i32")
            | dict.fromkeys(pointers[6:], "*fp32")
            | {"scale_log2": "fp32"}
            | dict.fromkeys((*strides, "num_heads"), "i32")
        )
        for tile in (16, 32, MAX_TILE):
            # sm_90's warp group products need at least 64 rows
            product = "HGMMA" if tile == MAX_TILE else "HMMA"
            expects = (
                {
                    **dict.fromkeys(ARCHS, ("HMMA", "LDGSTS")),
                    90: (product, "LDGSTS"),
                    100: ("LDGSTS",),
                }
                if num_bytes == 2
                else dict.fromkeys(ARCHS, ("FFMA",))
            )
            width = block_dim(dim)
            constexprs = {
                "GROUP": 1,
                "D": dim,
                "TILE": tile,
                "BLOCK_KEYS": config.block_keys,
                "BLOCK_D": width,
            }
            # At head dimension 32, a tile of 32 rows has too little to multiply for four warps;
            # loading keys dominates.
            multiply_adds = (
                2 * tile * config.block_keys * width if num_bytes == 2 and dim > 32 else 0
            )
            entries.append(
                AotEntry(
                    f"segment_decode.items.{dtype}.d{dim}.m{tile}",
                    _segment_kernel,
                    types,
                    constexprs,
                    (*pointers, *strides),
                    config.num_warps,
                    config.num_stages,
                    expects,
                    multiply_adds=multiply_adds,
                )
            )
    merge_pointers = (
        "part_out_ptr",
        "part_lse_ptr",
        "merge_begin_ptr",
        "merge_partials_ptr",
        "out_ptr",
    )
    for dim in HEAD_DIMS:
        for dtype in ("bf16", "fp32"):
            types = dict(
                zip(merge_pointers, ("*fp32", "*fp32", "*i32", "*i32", f"*{dtype}"), strict=True)
            ) | {"num_heads": "i32"}
            constexprs = {
                "D": dim,
                "BLOCK_D": block_dim(dim),
                "BLOCK_PARTS": MERGE_BLOCK,
            }
            entries.append(
                AotEntry(
                    f"segment_decode.merge.{dtype}.d{dim}",
                    _merge_kernel,
                    types,
                    constexprs,
                    merge_pointers,
                )
            )
    return entries
