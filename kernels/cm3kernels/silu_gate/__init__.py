"""Op `silu_gate`: its arguments, checked. Formula, shapes, costs: README.md in this folder; implementations:
`cm3kernels.dispatch`."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kernels._host import require
from cm3kernels.dispatch import SILU_GATE as IMPLEMENTATIONS
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "silu_gate"]


def silu_gate(gate_up: Tensor, *, implementation: str = "auto") -> Tensor:
    """silu(gate) * up, from the product of both.

    Args:
        gate_up: floating [M, 2 F], the gate first; the last stride is 1.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        [M, F], dtype of the product. No gradient.

    Raises:
        ValueError: the shape or the dtype is invalid; a gradient is required; or the implementation can't run.

    Source: SwiGLU, Shazeer 2020 (arXiv:2002.05202).

    >>> silu_gate(torch.tensor([[0.0, 100.0, 5.0, 2.0]])).tolist()
    [[0.0, 200.0]]
    """
    op = "silu_gate"
    require(
        gate_up.ndim == 2
        and gate_up.is_floating_point()
        and gate_up.shape[1] % 2 == 0
        and gate_up.shape[1] > 0
        and gate_up.stride(1) == 1,
        op,
        lambda: (
            f"gate_up is {list(gate_up.shape)} {gate_up.dtype} with strides "
            f"{list(gate_up.stride())}, must be floating [rows, 2 * width], the last stride 1"
        ),
    )
    require(
        not (torch.is_grad_enabled() and gate_up.requires_grad),
        op,
        "gate_up requires a gradient, which this op doesn't have; next: call it under "
        "torch.no_grad()",
    )
    out: Tensor = choose(op, implementation, IMPLEMENTATIONS, gate_up)(gate_up)
    return out
