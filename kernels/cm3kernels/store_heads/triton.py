"""The heads of one product in one launch: queries and keys normalised, keys and values written to the cache.

A program handles some heads of one token: of its queries, of its keys or of its values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3kernels._host import device_of
from cm3kernels.segment_decode.configs import HEAD_DIMS, block_dim

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

#: Heads of a program.
HEADS_AT_ONCE = 4


@triton.jit
def _normed(x, inside, weight_ptr, d, in_head, eps, D: tl.constexpr):
    mean = tl.sum(x, 1) / D
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / D + eps)
    weight = tl.load(weight_ptr + d, mask=in_head, other=0.0).to(tl.float32)
    return centred * scale[:, None] * weight[None, :]


@triton.jit
def _store_heads_kernel(
    qkv_ptr,
    norms_ptr,
    slots_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    qkv_row,
    keys_slot,
    keys_head,
    values_slot,
    values_head,
    num_heads,
    num_key_heads,
    eps,
    NORMS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    query_blocks = tl.cdiv(num_heads, BLOCK_HEADS)
    key_blocks = tl.cdiv(num_key_heads, BLOCK_HEADS)
    h = tl.arange(0, BLOCK_HEADS)
    d = tl.arange(0, BLOCK_D)
    in_head = d < D
    row_ptr = qkv_ptr + token * qkv_row
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if block < query_blocks:
        head = block * BLOCK_HEADS + h
        inside = (head < num_heads)[:, None] & in_head[None, :]
        place = head[:, None] * D + d[None, :]
        x = tl.load(row_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if NORMS:
            x = _normed(x, inside, norms_ptr, d, in_head, eps, D)
        tl.store(q_ptr + token * num_heads * D + place, x.to(q_ptr.dtype.element_ty), mask=inside)
    elif block < query_blocks + key_blocks:
        head = (block - query_blocks) * BLOCK_HEADS + h
        inside = (head < num_key_heads)[:, None] & in_head[None, :]
        place = (num_heads + head)[:, None] * D + d[None, :]
        x = tl.load(row_ptr + place, mask=inside, other=0.0).to(tl.float32)
        if NORMS:
            x = _normed(x, inside, norms_ptr + D, d, in_head, eps, D)
        to = slot * keys_slot + head.to(tl.int64)[:, None] * keys_head + d[None, :]
        tl.store(keys_ptr + to, x.to(keys_ptr.dtype.element_ty), mask=inside)
    else:
        head = (block - query_blocks - key_blocks) * BLOCK_HEADS + h
        inside = (head < num_key_heads)[:, None] & in_head[None, :]
        place = (num_heads + num_key_heads + head)[:, None] * D + d[None, :]
        x = tl.load(row_ptr + place, mask=inside, other=0.0).to(tl.float32)
        to = slot * values_slot + head.to(tl.int64)[:, None] * values_head + d[None, :]
        tl.store(values_ptr + to, x.to(values_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("cm3::store_heads", mutates_args=("keys", "values"))
def _store_heads(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    norms: Tensor | None,
    eps: float,
) -> Tensor:
    num_key_heads, dim = keys.shape[1:]
    num_heads = qkv.shape[1] // dim - 2 * num_key_heads
    q = torch.empty(len(qkv), num_heads, dim, dtype=keys.dtype, device=qkv.device)
    if len(qkv):
        blocks = triton.cdiv(num_heads, HEADS_AT_ONCE) + 2 * triton.cdiv(
            num_key_heads, HEADS_AT_ONCE
        )
        with device_of(qkv):
            _store_heads_kernel[len(qkv), blocks](
                qkv,
                qkv if norms is None else norms,
                slots,
                q,
                keys,
                values,
                qkv.stride(0),
                keys.stride(0),
                keys.stride(1),
                values.stride(0),
                values.stride(1),
                num_heads,
                num_key_heads,
                eps,
                NORMS=norms is not None,
                D=dim,
                BLOCK_HEADS=HEADS_AT_ONCE,
                BLOCK_D=block_dim(dim),
                num_warps=1,
            )
    return q


@_store_heads.register_fake
def _(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    norms: Tensor | None,
    eps: float,
) -> Tensor:
    num_key_heads, dim = keys.shape[1:]
    return keys.new_empty(len(qkv), qkv.shape[1] // dim - 2 * num_key_heads, dim)


def store_heads_triton(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    norms: Tensor | None,
    eps: float,
) -> Tensor:
    """See `cm3kernels.store_heads`. One launch, no synchronisation: can be captured in a CUDA graph."""
    q: Tensor = _store_heads(qkv, keys, values, slots, norms, eps)
    return q


def aot_entries() -> list[AotEntry]:
    """Head dimensions and dtypes (float16 compiles to the same code as bfloat16), with norms and without."""
    from cm3kernels.aot import AotEntry

    tensors = ("qkv_ptr", "q_ptr", "keys_ptr", "values_ptr")
    strides = ("qkv_row", "keys_slot", "keys_head", "values_slot", "values_head")
    entries = []
    for dim in HEAD_DIMS:
        for dtype in ("bf16", "fp32"):
            for norms in (False, True):
                types = (
                    dict.fromkeys(tensors, f"*{dtype}")
                    | {"norms_ptr": "*fp32" if norms else f"*{dtype}", "slots_ptr": "*i64"}
                    | dict.fromkeys((*strides, "num_heads", "num_key_heads"), "i32")
                    | {"eps": "fp32"}
                )
                # a program's heads of dimension 32 are too few for all lanes to read 16 bytes
                loads = "LDG.E.64" if dtype == "bf16" and dim == HEAD_DIMS[0] else "LDG.E.128"
                entries.append(
                    AotEntry(
                        f"store_heads.{'normed' if norms else 'plain'}.{dtype}.d{dim}",
                        _store_heads_kernel,
                        types,
                        {
                            "NORMS": norms,
                            "D": dim,
                            "BLOCK_HEADS": HEADS_AT_ONCE,
                            "BLOCK_D": block_dim(dim),
                        },
                        (*tensors, "norms_ptr", "slots_ptr", *strides),
                        num_warps=1,
                        expects={80: (loads,), 90: (loads,)},
                    )
                )
    return entries
