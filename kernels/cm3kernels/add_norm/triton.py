"""Residual sum, layer norm and cast in one launch: a program for each row, which stays in registers.

A step of generation has few rows, so the launch itself is what costs: torch takes three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3kernels._host import device_of

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

#: Fewest and most columns of a program; the latter is `dispatch.LARGEST_WIDTH`.
LEAST_BLOCK, LARGEST_BLOCK = 1024, 16_384
#: Columns of a program with one warp. A row of the largest width takes 16.
COLUMNS_A_WARP = 512


@triton.jit
def _add_norm_kernel(
    x_ptr,
    added_ptr,
    weight_ptr,
    total_ptr,
    normed_ptr,
    x_row,
    added_row,
    width,
    eps,
    ADDS: tl.constexpr,
    CENTRES: tl.constexpr,
    WEIGHS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK)
    inside = e < width
    x = tl.load(x_ptr + row * x_row + e, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        added = tl.load(added_ptr + row * added_row + e, mask=inside, other=0.0)
        total = (x + added.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row * width + e, total, mask=inside)
        x = total.to(tl.float32)  # the norm is of the rounded sum, which the next block reads
    if CENTRES:
        x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    if WEIGHS:
        normed *= tl.load(weight_ptr + e, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + row * width + e, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def block_of(width: int) -> int:
    """Columns of a program, a power of two.

    >>> block_of(96), block_of(1536)
    (1024, 2048)
    """
    return max(LEAST_BLOCK, 1 << (width - 1).bit_length())


def num_warps_of(block: int) -> int:
    """Warps of a program with so many columns.

    >>> num_warps_of(1024), num_warps_of(4096), num_warps_of(16384)
    (2, 8, 16)
    """
    return min(16, block // COLUMNS_A_WARP)


@torch.library.custom_op("cm3::add_norm", mutates_args=())
def _add_norm(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    centred: bool,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    num_rows, width = x.shape
    normed = torch.empty(num_rows, width, dtype=dtype, device=x.device)
    total = torch.empty(x.shape if added is not None else 0, dtype=x.dtype, device=x.device)
    block, nothing = block_of(width), x.new_empty(0)
    if num_rows:
        with device_of(x):
            _add_norm_kernel[num_rows,](
                x,
                nothing if added is None else added,
                nothing if weight is None else weight,
                total,
                normed,
                x.stride(0),
                0 if added is None else added.stride(0),
                width,
                eps,
                ADDS=added is not None,
                CENTRES=centred,
                WEIGHS=weight is not None,
                BLOCK=block,
                num_warps=num_warps_of(block),
            )
    return total, normed


@_add_norm.register_fake
def _(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    centred: bool,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if added is not None else 0), x.new_empty(x.shape, dtype=dtype)


def add_norm_triton(
    x: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    centred: bool,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.add_norm`. One launch, no synchronisation: can be captured in a CUDA graph."""
    total, normed = _add_norm(x, added, weight, centred, dtype, eps)
    return (x if added is None else total), normed


def aot_entries() -> list[AotEntry]:
    """Widths, dtypes of the products (float16 compiles to the same code as bfloat16), and both norms that decoders have:
    CM3leon's without weights, and the root mean square with them. The residual stream is float32."""
    from cm3kernels.aot import AotEntry

    pointers = ("x_ptr", "added_ptr", "weight_ptr", "total_ptr", "normed_ptr")
    entries = []
    block = LEAST_BLOCK
    while block <= LARGEST_BLOCK:
        for product in ("bf16", "fp32"):
            for adds in (True, False):
                for norm in ("layer", "rms"):
                    first, second = ("*fp32", f"*{product}")
                    types = dict(
                        zip(pointers, (first, second, first, first, second), strict=True)
                    ) | {"x_row": "i32", "added_row": "i32", "width": "i32", "eps": "fp32"}
                    entries.append(
                        AotEntry(
                            f"add_norm.{norm}.{'sum' if adds else 'first'}.{product}.e{block}",
                            _add_norm_kernel,
                            types,
                            {
                                "ADDS": adds,
                                "CENTRES": norm == "layer",
                                "WEIGHS": norm == "rms",
                                "BLOCK": block,
                            },
                            (*pointers, "x_row", "added_row", "width"),
                            num_warps_of(block),
                            expects={80: ("LDG.E.128",), 90: ("LDG.E.128",)},
                        )
                    )
        block *= 2
    return entries
