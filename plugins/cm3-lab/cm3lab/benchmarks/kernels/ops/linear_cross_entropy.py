"""The loss over a tied vocabulary with its gradients: fused, compared with all logits in memory.

Legend: N tokens, E model dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from cm3kernels.linear_cross_entropy import IMPLEMENTATIONS, linear_cross_entropy
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import Case, Inputs, Op, Shape, ShapeKey, TorchProvider, Where

#: (tokens, model dimension, ids)
SHAPES = {
    ("cuda", "full"): [(4096, 1024, 65_536), (8192, 2048, 65_536), (8192, 4096, 65_536)],
    ("cuda", "quick"): [(8192, 2048, 65_536)],
    ("cpu", "full"): [(1024, 256, 8192), (512, 256, 65_536)],
    ("cpu", "quick"): [(512, 128, 8192)],
}
NUM_GROUPS = 4


class LinearCrossEntropyOp(Op):
    """`cm3kernels.linear_cross_entropy` and its alternatives: the loss, and the gradients of hidden
    states and head."""

    name, baseline = "linear_cross_entropy", "torch"
    keys: ClassVar = {
        "N": ShapeKey("tokens"),
        "E": ShapeKey("model dimension"),
        "V": ShapeKey("ids"),
    }
    #: Logits and their gradient are each rounded to the inputs' precision once.
    limits: ClassVar = {"float32": 2e-5, "bfloat16": 2e-2}
    gradients = ("hidden", "head")
    costs = "bytes (N + V) E w, backward twice that; operations 2 N E V, backward twice that"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call, our_refusal)
            for name in IMPLEMENTATIONS
        ]
        self.providers += [
            TorchProvider("torch", whole_logits, compiled) for compiled in (False, True)
        ]

    def shapes(self, where: Where) -> list[Shape]:
        sizes = [(20, 32, 100)] if where.dry else SHAPES[where.target, where.size]
        return [dict(zip("NEV", size, strict=True)) for size in sizes]

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        N, E, V = (shape[name] for name in "NEV")
        passes = 2 if backward else 1
        return passes * (N + V) * E * dtype.itemsize, passes * 2 * N * E * V

    def reference_bytes(self, case: Case) -> int:
        """All logits in float64, their gradient, and what the loss makes of them."""
        N, E, V = (case.parameters[name] for name in "NEV")
        return int(8 * (4 * N * V + 3 * (N + V) * E))

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        N, E, V = (case.parameters[name] for name in "NEV")
        generator, device = torch.Generator(where.device).manual_seed(seed), where.device
        hidden = torch.randn(N, E, generator=generator, device=device)
        head = torch.randn(V, E, generator=generator, device=device) * E**-0.5
        return {
            "hidden": hidden.to(case.dtype),
            "head": head.to(case.dtype),
            "targets": torch.randint(V, (N,), generator=generator, device=device),
            "weights": (torch.rand(N, generator=generator, device=device) > 0.1).float() / N,
            "groups": torch.randint(NUM_GROUPS, (N,), generator=generator, device=device),
        }

    def reference(self, case: Case, inputs: Inputs) -> Any:
        return our_call("reference", case, inputs)()


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, case.parameters["E"], dtype=case.dtype, device=where.device)


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    return lambda: linear_cross_entropy(
        inputs["hidden"],
        inputs["head"],
        inputs["targets"],
        inputs["weights"],
        inputs["groups"],
        num_groups=NUM_GROUPS,
        implementation=implementation,
    )[0]


def our_refusal(implementation: str, case: Case, where: Where) -> str | None:
    if implementation != "reference" and case.direction == "backward":
        return "computes gradients in the forward pass; compare it in the direction both"
    return None


def whole_logits(inputs: Inputs) -> Tensor:
    """Return the loss from all logits, float32 inside the loss."""
    logits = linear(inputs["hidden"], inputs["head"]).float()
    losses = cross_entropy(logits, inputs["targets"], reduction="none")
    loss: Tensor = (inputs["weights"] * losses).sum()
    return loss
