"""The residual sum and the norm of a decoder's step: one launch, compared with torch's three.

Legend: M rows (streams of all pictures), E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from cm3kernels.add_norm import IMPLEMENTATIONS, add_norm
from cm3lab.benchmarks.kernels.ops.attention import LIMITS
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, Shape, ShapeKey, TorchProvider, Where

#: (rows, model dimension)
SHAPES = {
    ("cuda", "full"): [(M, E) for E in (1024, 1536, 4096) for M in (2, 16, 64)],
    ("cuda", "quick"): [(2, 4096), (16, 4096)],
    ("cpu", "full"): [(2, 1024), (16, 1024), (16, 4096)],
    ("cpu", "quick"): [(16, 1024)],
}


class AddNormOp(Op):
    """`cm3kernels.add_norm` and torch's operations."""

    name, baseline, limits = "add_norm", "torch", LIMITS
    keys: ClassVar = {
        "M": ShapeKey("rows: streams of all pictures"),
        "E": ShapeKey("model dimension"),
    }
    # the stream is float32; the branch and the normalised sum have the products' dtype
    costs = "bytes 2 M E (4 + w); operations 8 M E"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call) for name in IMPLEMENTATIONS
        ]
        self.providers += [TorchProvider("torch", plain, compiled) for compiled in (False, True)]

    def shapes(self, where: Where) -> list[Shape]:
        sizes = [(3, 40)] if where.dry else SHAPES[where.target, where.size]
        return [{"M": M, "E": E} for M, E in sizes]

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        numbers = shape["M"] * shape["E"]
        return 2 * numbers * (torch.float32.itemsize + dtype.itemsize), 8 * numbers

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        shape = case.parameters["M"], case.parameters["E"]
        generator = torch.Generator(where.device).manual_seed(seed)
        x, added = torch.randn(2, *shape, generator=generator, device=where.device)
        return {"x": x, "added": added.to(case.dtype)}

    def reference(self, case: Case, inputs: Inputs) -> Any:
        return our_call("reference", case, inputs)()


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, case.parameters["E"], device=where.device)


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    x, added = inputs["x"], inputs["added"]
    return lambda: add_norm(x, added, dtype=added.dtype, implementation=implementation)


def plain(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the sum and its norm."""
    total = inputs["x"] + inputs["added"]
    return total, layer_norm(total, total.shape[-1:], eps=1e-5).to(inputs["added"].dtype)
