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
LEAST_BLOCK, LARGEST_BLOCK = 256, 16_384
#: Columns of a program with one warp. A row of the largest width takes 16.
COLUMNS_A_WARP = 512


@triton.jit
def _add_norm_kernel(
    x_ptr,
    added_ptr,
    total_ptr,
    normed_ptr,
    x_row,
    added_row,
    width,
    eps,
    ADDS: tl.constexpr,
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
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    normed = (centred * scale).to(normed_ptr.dtype.element_ty)
    tl.store(normed_ptr + row * width + e, normed, mask=inside)


def block_of(width: int) -> int:
    """Columns of a program, a power of two.

    >>> block_of(96), block_of(1536)
    (256, 2048)
    """
    return max(LEAST_BLOCK, 1 << (width - 1).bit_length())


def num_warps_of(block: int) -> int:
    """Warps of a program with so many columns.

    >>> num_warps_of(256), num_warps_of(4096), num_warps_of(16384)
    (1, 8, 16)
    """
    return max(1, min(16, block // COLUMNS_A_WARP))


@torch.library.custom_op("cm3::add_norm", mutates_args=())
def _add_norm(
    x: Tensor, added: Tensor | None, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor]:
    num_rows, width = x.shape
    normed = torch.empty(num_rows, width, dtype=dtype, device=x.device)
    total = torch.empty(x.shape if added is not None else 0, dtype=x.dtype, device=x.device)
    block = block_of(width)
    if num_rows:
        with device_of(x):
            _add_norm_kernel[num_rows,](
                x,
                x if added is None else added,
                normed if added is None else total,
                normed,
                x.stride(0),
                x.stride(0) if added is None else added.stride(0),
                width,
                eps,
                ADDS=added is not None,
                BLOCK=block,
                num_warps=num_warps_of(block),
            )
    return total, normed


@_add_norm.register_fake
def _(x: Tensor, added: Tensor | None, dtype: torch.dtype, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if added is not None else 0), x.new_empty(x.shape, dtype=dtype)


def add_norm_triton(
    x: Tensor, added: Tensor | None, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.add_norm`. One launch, no synchronisation: can be captured in a CUDA graph."""
    total, normed = _add_norm(x, added, dtype, eps)
    return (x if added is None else total), normed


def aot_entries() -> list[AotEntry]:
    """Widths, and the dtypes of the residual stream and of the products (float16 compiles to the same code as
    bfloat16)."""
    from cm3kernels.aot import AotEntry

    pointers = ("x_ptr", "added_ptr", "total_ptr", "normed_ptr")
    entries = []
    block = LEAST_BLOCK
    while block <= LARGEST_BLOCK:
        for stream, product in (("fp32", "bf16"), ("bf16", "bf16"), ("fp32", "fp32")):
            for adds in (True, False):
                types = dict(
                    zip(
                        pointers,
                        (f"*{stream}", f"*{product}", f"*{stream}", f"*{product}"),
                        strict=True,
                    )
                ) | {"x_row": "i32", "added_row": "i32", "width": "i32", "eps": "fp32"}
                entries.append(
                    AotEntry(
                        f"add_norm.{'sum' if adds else 'first'}.{stream}.{product}.e{block}",
                        _add_norm_kernel,
                        types,
                        {"ADDS": adds, "BLOCK": block},
                        (*pointers, "x_row", "added_row", "width"),
                        num_warps_of(block),
                        expects={80: ("LDG.E.128",), 90: ("LDG.E.128",)},
                    )
                )
        block *= 2
    return entries
