"""The heads of one product in one launch: queries and keys normalised and rotated, keys and values written to the cache.

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
from cm3kernels.store_heads.heads import HeadNorms, Turn

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

#: Heads of a program.
HEADS_AT_ONCE = 4


@triton.jit
def _heads(row_ptr, bias_ptr, place, inside, BIASED: tl.constexpr):
    x = tl.load(row_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        x += tl.load(bias_ptr + place, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def _weighed(x, weight_ptr, shift_ptr, place, inside, SHIFTS: tl.constexpr):
    x *= tl.load(weight_ptr + place, mask=inside, other=0.0).to(tl.float32)
    if SHIFTS:
        x += tl.load(shift_ptr + place, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def _prepared(
    row_ptr,
    bias_ptr,
    weight_ptr,
    shift_ptr,
    cosines_ptr,
    sines_ptr,
    head,
    last,
    eps,
    BIASED: tl.constexpr,
    NORMS: tl.constexpr,
    CENTRES: tl.constexpr,
    SHIFTS: tl.constexpr,
    TURNS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    in_head = d < D
    inside = (head < last)[:, None] & in_head[None, :]
    place = head[:, None] * D + d[None, :]
    x = _heads(row_ptr, bias_ptr, place, inside, BIASED)
    if TURNS:
        # the dimension that d is rotated with
        other = tl.where(d < D // 2, d + D // 2, d - D // 2)
        other_place = head[:, None] * D + other[None, :]
        z = _heads(row_ptr, bias_ptr, other_place, inside, BIASED)
    if NORMS:
        if CENTRES:
            mean = (tl.sum(x, 1) / D)[:, None]
            x = tl.where(inside, x - mean, 0.0)
            if TURNS:
                z = tl.where(inside, z - mean, 0.0)
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
        x = _weighed(x * scale, weight_ptr, shift_ptr, place, inside, SHIFTS)
        if TURNS:
            z = _weighed(z * scale, weight_ptr, shift_ptr, other_place, inside, SHIFTS)
    if TURNS:
        cosine = tl.load(cosines_ptr + d, mask=in_head, other=0.0)
        sine = tl.load(sines_ptr + d, mask=in_head, other=0.0)
        sine = tl.where(d < D // 2, -sine, sine)
        x = x * cosine[None, :] + z * sine[None, :]
    return x


@triton.jit
def _store_heads_kernel(
    qkv_ptr,
    bias_ptr,
    weight_ptr,
    shift_ptr,
    cosines_ptr,
    sines_ptr,
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
    BIASED: tl.constexpr,
    NORMS: tl.constexpr,
    CENTRES: tl.constexpr,
    SHIFTS: tl.constexpr,
    TURNS: tl.constexpr,
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
    if block < query_blocks + key_blocks:
        is_query = block < query_blocks
        first = tl.where(is_query, block, block - query_blocks) * BLOCK_HEADS
        own = first + h
        last = tl.where(is_query, num_heads, num_heads + num_key_heads)
        # heads of keys follow those of queries, in the product and in the weights
        head = tl.where(is_query, own, own + num_heads)
        x = _prepared(
            row_ptr,
            bias_ptr,
            weight_ptr,
            shift_ptr,
            cosines_ptr + token * D,
            sines_ptr + token * D,
            head,
            last,
            eps,
            BIASED,
            NORMS,
            CENTRES,
            SHIFTS,
            TURNS,
            D,
            BLOCK_D,
        )
        inside = (head < last)[:, None] & in_head[None, :]
        if is_query:
            to = token * num_heads * D + own[:, None] * D + d[None, :]
            tl.store(q_ptr + to, x.to(q_ptr.dtype.element_ty), mask=inside)
        else:
            to = slot * keys_slot + own.to(tl.int64)[:, None] * keys_head + d[None, :]
            tl.store(keys_ptr + to, x.to(keys_ptr.dtype.element_ty), mask=inside)
    else:
        own = (block - query_blocks - key_blocks) * BLOCK_HEADS + h
        inside = (own < num_key_heads)[:, None] & in_head[None, :]
        place = (num_heads + num_key_heads + own)[:, None] * D + d[None, :]
        x = _heads(row_ptr, bias_ptr, place, inside, BIASED)
        to = slot * values_slot + own.to(tl.int64)[:, None] * values_head + d[None, :]
        tl.store(values_ptr + to, x.to(values_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("cm3::store_heads", mutates_args=("keys", "values"))
def _store_heads(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    centred: bool,
    eps: float,
    cosines: Tensor | None,
    sines: Tensor | None,
) -> Tensor:
    num_key_heads, dim = keys.shape[1:]
    num_heads = qkv.shape[1] // dim - 2 * num_key_heads
    q = torch.empty(len(qkv), num_heads, dim, dtype=keys.dtype, device=qkv.device)
    if not len(qkv):
        return q
    query_blocks, key_blocks = (
        triton.cdiv(number, HEADS_AT_ONCE) for number in (num_heads, num_key_heads)
    )
    nothing = qkv.new_empty(0)
    extra = (nothing if one is None else one for one in (bias, weight, shift, cosines, sines))
    with device_of(qkv):
        _store_heads_kernel[len(qkv), query_blocks + 2 * key_blocks](
            qkv,
            *extra,
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
            BIASED=bias is not None,
            NORMS=weight is not None,
            CENTRES=centred,
            SHIFTS=shift is not None,
            TURNS=cosines is not None,
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
    bias: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    centred: bool,
    eps: float,
    cosines: Tensor | None,
    sines: Tensor | None,
) -> Tensor:
    num_key_heads, dim = keys.shape[1:]
    return keys.new_empty(len(qkv), qkv.shape[1] // dim - 2 * num_key_heads, dim)


def store_heads_triton(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    norms: HeadNorms | None,
    turn: Turn | None,
) -> Tensor:
    """See `cm3kernels.store_heads`. One launch, no synchronisation: can be captured in a CUDA graph."""
    q: Tensor = _store_heads(
        qkv,
        keys,
        values,
        slots,
        bias,
        None if norms is None else norms.weight,
        None if norms is None else norms.bias,
        norms is not None and norms.centred,
        1.0 if norms is None else norms.eps,
        None if turn is None else turn.cosines,
        None if turn is None else turn.sines,
    )
    return q


#: What decoders do to heads: CM3leon's, then Llama's with the norms of Chameleon and of Qwen 3, and with biases.
KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "normed": {"NORMS": True, "CENTRES": True},
    "turned": {"TURNS": True},
    "turned_layer": {"TURNS": True, "NORMS": True, "CENTRES": True, "SHIFTS": True},
    "turned_rms": {"TURNS": True, "NORMS": True},
    "turned_biased": {"TURNS": True, "BIASED": True},
}


def aot_entries() -> list[AotEntry]:
    """Head dimensions, dtypes (float16 compiles to the same code as bfloat16), and `KINDS`."""
    from cm3kernels.aot import AotEntry

    tensors = ("qkv_ptr", "q_ptr", "keys_ptr", "values_ptr")
    weights = ("bias_ptr", "weight_ptr", "shift_ptr", "cosines_ptr", "sines_ptr")
    strides = ("qkv_row", "keys_slot", "keys_head", "values_slot", "values_head")
    flags = ("BIASED", "NORMS", "CENTRES", "SHIFTS", "TURNS")
    entries = []
    for dim in HEAD_DIMS:
        for dtype in ("bf16", "fp32"):
            for kind, chosen in KINDS.items():
                types = (
                    dict.fromkeys(tensors, f"*{dtype}")
                    | dict.fromkeys(weights, "*fp32")
                    | {"slots_ptr": "*i64", "bias_ptr": f"*{dtype}"}
                    | dict.fromkeys((*strides, "num_heads", "num_key_heads"), "i32")
                    | {"eps": "fp32"}
                )
                # a program's heads of dimension 32 are too few for all lanes to read 16 bytes
                loads = "LDG.E.64" if dtype == "bf16" and dim == HEAD_DIMS[0] else "LDG.E.128"
                entries.append(
                    AotEntry(
                        f"store_heads.{kind}.{dtype}.d{dim}",
                        _store_heads_kernel,
                        types,
                        {
                            **{flag: chosen.get(flag, False) for flag in flags},
                            "D": dim,
                            "BLOCK_HEADS": HEADS_AT_ONCE,
                            "BLOCK_D": block_dim(dim),
                        },
                        (*tensors, *weights, "slots_ptr", *strides),
                        num_warps=1,
                        expects={80: (loads,), 90: (loads,)},
                    )
                )
    return entries
