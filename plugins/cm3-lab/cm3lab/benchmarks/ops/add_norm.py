"""The residual sum and the norm of a decoder's step: one launch, compared with torch's three.

Legend: M rows (streams of all pictures), E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from cm3kernels.add_norm import IMPLEMENTATIONS, add_norm
from cm3lab.benchmarks.ops.attention import LIMITS
from cm3lab.benchmarks.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, TorchProvider, Verdict, Where, relative_error

#: (rows, model dimension)
SHAPES = {
    ("cuda", "full"): [(M, E) for E in (1024, 1536, 4096) for M in (2, 16, 64)],
    ("cuda", "quick"): [(2, 4096), (16, 4096)],
    ("cpu", "full"): [(2, 1024), (16, 1024), (16, 4096)],
    ("cpu", "quick"): [(16, 1024)],
}


class AddNormOp(Op):
    """`cm3kernels.add_norm` and torch's operations."""

    name, baseline = "add_norm", "torch"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [OurImplementation(name, our_call) for name in IMPLEMENTATIONS]
        self.providers += [TorchProvider("torch", plain, compiled) for compiled in (False, True)]

    def cases(self, where: Where) -> list[Case]:
        dtype = torch.bfloat16 if where.target == "cuda" and not where.dry else torch.float32
        shapes = [(3, 40)] if where.dry else SHAPES[where.target, where.size]
        # the stream is float32; the branch and the normalised sum have the products' dtype
        return [
            Case(
                f"M{M} E{E}",
                {"M": M, "E": E},
                dtype,
                2 * M * E * (torch.float32.itemsize + dtype.itemsize),
                8 * M * E,
            )
            for M, E in shapes
        ]

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        shape = case.parameters["M"], case.parameters["E"]
        generator = torch.Generator(where.device).manual_seed(seed)
        x, added = torch.randn(2, *shape, generator=generator, device=where.device)
        return {"x": x, "added": added.to(case.dtype)}

    def expected(self, case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
        doubled = {name: tensor.double() for name, tensor in inputs.items()}
        found: tuple[Tensor, Tensor] = our_call("reference", case, doubled)()
        return found

    def gate(self, case: Case, expected: tuple[Tensor, Tensor], output: Any) -> Verdict:
        errors = [
            relative_error(given, right) for given, right in zip(output, expected, strict=True)
        ]
        return Verdict(max(errors), LIMITS[case.dtype], "relative error")


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    x, added = inputs["x"], inputs["added"]
    return lambda: add_norm(x, added, dtype=added.dtype, implementation=implementation)


def plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the sum and its norm."""
    total = inputs["x"] + inputs["added"]
    return total, layer_norm(total, total.shape[-1:], eps=1e-5).to(inputs["added"].dtype)
