"""The gate of a Llama-style decoder's step: one launch, compared with torch's two.

Legend: M rows (streams of all pictures), F inputs of the last product of a branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import silu

from cm3kernels.silu_gate import IMPLEMENTATIONS, silu_gate
from cm3lab.benchmarks.kernels.ops.attention import LIMITS
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, Shape, ShapeKey, TorchProvider, Where

#: (rows, F)
SHAPES = {
    ("cuda", "full"): [(M, F) for F in (2816, 11_008) for M in (2, 16, 64)],
    ("cuda", "quick"): [(2, 11_008), (16, 11_008)],
    ("cpu", "full"): [(2, 2816), (16, 2816)],
    ("cpu", "quick"): [(16, 2816)],
}


class SiluGateOp(Op):
    """`cm3kernels.silu_gate` and torch's operations."""

    name, baseline, limits = "silu_gate", "torch", LIMITS
    keys: ClassVar = {
        "M": ShapeKey("rows: streams of all pictures"),
        "F": ShapeKey("inputs of the branch's last product"),
    }
    costs = "bytes 3 M F w; operations 5 M F"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call) for name in IMPLEMENTATIONS
        ]
        self.providers += [TorchProvider("torch", plain, compiled) for compiled in (False, True)]

    def shapes(self, where: Where) -> list[Shape]:
        sizes = [(3, 20)] if where.dry else SHAPES[where.target, where.size]
        return [{"M": M, "F": F} for M, F in sizes]

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        M, F = shape["M"], shape["F"]
        return 3 * M * F * dtype.itemsize, 5 * M * F

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        generator = torch.Generator(where.device).manual_seed(seed)
        shape = case.parameters["M"], 2 * case.parameters["F"]
        x = torch.randn(*shape, generator=generator, device=where.device)
        return {"gate_up": x.to(case.dtype)}

    def reference(self, case: Case, inputs: Inputs) -> Tensor:
        return silu_gate(inputs["gate_up"], implementation="reference")


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, 2 * case.parameters["F"], dtype=case.dtype, device=where.device)


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    return lambda: silu_gate(inputs["gate_up"], implementation=implementation)


def plain(inputs: Inputs) -> Tensor:
    """Return the gated product."""
    gate, up = inputs["gate_up"].chunk(2, dim=-1)
    gated: Tensor = silu(gate) * up
    return gated
