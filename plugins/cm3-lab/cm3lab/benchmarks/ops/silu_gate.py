"""The gate of a Llama-style decoder's step: one launch, compared with torch's two.

Legend: M rows (streams of all pictures), F inputs of the last product of a branch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from cm3kernels.silu_gate import IMPLEMENTATIONS, silu_gate
from cm3lab.benchmarks.ops.attention import LIMITS
from cm3lab.benchmarks.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, TorchProvider, Verdict, Where, relative_error

#: (rows, F)
SHAPES = {
    ("cuda", "full"): [(M, F) for F in (2816, 11_008) for M in (2, 16, 64)],
    ("cuda", "quick"): [(2, 11_008), (16, 11_008)],
    ("cpu", "full"): [(2, 2816), (16, 2816)],
    ("cpu", "quick"): [(16, 2816)],
}


class SiluGateOp(Op):
    """`cm3kernels.silu_gate` and torch's operations."""

    name, baseline = "silu_gate", "torch"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [OurImplementation(name, our_call) for name in IMPLEMENTATIONS]
        self.providers += [TorchProvider("torch", plain, compiled) for compiled in (False, True)]

    def cases(self, where: Where) -> list[Case]:
        dtype = torch.bfloat16 if where.target == "cuda" and not where.dry else torch.float32
        shapes = [(3, 20)] if where.dry else SHAPES[where.target, where.size]
        return [
            Case(f"M{M} F{F}", {"M": M, "F": F}, dtype, 3 * M * F * dtype.itemsize, 5 * M * F)
            for M, F in shapes
        ]

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        generator = torch.Generator(where.device).manual_seed(seed)
        shape = case.parameters["M"], 2 * case.parameters["F"]
        x = torch.randn(*shape, generator=generator, device=where.device)
        return {"gate_up": x.to(case.dtype)}

    def expected(self, case: Case, inputs: Inputs) -> Tensor:
        return silu_gate(inputs["gate_up"].double(), implementation="reference")

    def gate(self, case: Case, expected: Tensor, output: Any) -> Verdict:
        return Verdict(relative_error(output, expected), LIMITS[case.dtype], "relative error")


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    return lambda: silu_gate(inputs["gate_up"], implementation=implementation)


def plain(inputs: Inputs) -> Tensor:
    """Return the gated product."""
    gate, up = inputs["gate_up"].chunk(2, dim=-1)
    gated: Tensor = silu(gate) * up
    return gated
