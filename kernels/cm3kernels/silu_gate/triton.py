"""The gate of a feed-forward branch in one launch; torch takes two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from cm3kernels._host import device_of

if TYPE_CHECKING:
    from cm3kernels.aot import AotEntry

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
#: Columns of a program, and its warps.
BLOCK_COLUMNS, NUM_WARPS = 1024, 4


@triton.jit
def _silu_gate_kernel(x_ptr, out_ptr, x_row, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = f < width
    gate = tl.load(x_ptr + row * x_row + f, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_row + width + f, mask=inside, other=0.0).to(tl.float32)
    small = tl.exp2(-tl.abs(gate) * LOG2_E)  # of either sign, without overflow
    gated = gate * tl.where(gate >= 0, 1.0, small) / (1.0 + small) * up
    tl.store(out_ptr + row * width + f, gated.to(out_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("cm3::silu_gate", mutates_args=())
def _silu_gate(gate_up: Tensor) -> Tensor:
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        with device_of(gate_up):
            _silu_gate_kernel[num_rows, triton.cdiv(width, BLOCK_COLUMNS)](
                gate_up,
                out,
                gate_up.stride(0),
                width,
                BLOCK=BLOCK_COLUMNS,
                num_warps=NUM_WARPS,
            )
    return out


@_silu_gate.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def silu_gate_triton(gate_up: Tensor) -> Tensor:
    """See `cm3kernels.silu_gate`. One launch, no synchronisation: can be captured in a CUDA graph."""
    out: Tensor = _silu_gate(gate_up)
    return out


def aot_entries() -> list[AotEntry]:
    """Dtypes; float16 compiles to the same code as bfloat16."""
    from cm3kernels.aot import AotEntry

    return [
        AotEntry(
            f"silu_gate.{dtype}",
            _silu_gate_kernel,
            {"x_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "x_row": "i32", "width": "i32"},
            {"BLOCK": BLOCK_COLUMNS},
            ("x_ptr", "out_ptr", "x_row", "width"),
            NUM_WARPS,
            expects={80: ("LDG.E.128",), 90: ("LDG.E.128",)},
        )
        for dtype in ("bf16", "fp32")
    ]
