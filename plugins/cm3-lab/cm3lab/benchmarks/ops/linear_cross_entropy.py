"""The loss over a tied vocabulary with its gradients: fused, compared with all logits in memory.

Legend: N tokens, E model dimension, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from cm3kernels.linear_cross_entropy import IMPLEMENTATIONS, linear_cross_entropy
from cm3lab.benchmarks.ops.ours import OurImplementation
from cm3run.benchmarks import (
    Case,
    Inputs,
    Op,
    TorchProvider,
    Verdict,
    Where,
    relative_error,
)

#: Error limit of the loss and both gradients. Logits and their gradient are each rounded to the inputs'
#: precision once.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
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

    def __init__(self) -> None:
        super().__init__()
        self.providers += [OurImplementation(name, our_call) for name in IMPLEMENTATIONS]
        self.providers += [
            LogitsProvider("torch", whole_logits, compiled) for compiled in (False, True)
        ]

    def cases(self, where: Where) -> list[Case]:
        dtype = torch.bfloat16 if where.target == "cuda" and not where.dry else torch.float32
        shapes = [(20, 32, 100)] if where.dry else SHAPES[where.target, where.size]
        # Three products; hidden states and head in, their gradients out.
        return [
            Case(
                f"N{N} E{E} V{V} loss+gradients",
                {"N": N, "E": E, "V": V},
                dtype,
                2 * (N + V) * E * dtype.itemsize,
                6 * N * E * V,
            )
            for N, E, V in shapes
        ]

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        N, E, V = (case.parameters[name] for name in "NEV")
        generator, device = torch.Generator(where.device).manual_seed(seed), where.device
        hidden = (
            torch.randn(N, E, generator=generator, device=device).to(case.dtype).requires_grad_()
        )
        head = (
            (torch.randn(V, E, generator=generator, device=device) * E**-0.5)
            .to(case.dtype)
            .requires_grad_()
        )
        return {
            "hidden": hidden,
            "head": head,
            "targets": torch.randint(V, (N,), generator=generator, device=device),
            "weights": (torch.rand(N, generator=generator, device=device) > 0.1).float() / N,
            "groups": torch.randint(NUM_GROUPS, (N,), generator=generator, device=device),
        }

    def expected(self, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
        hidden, head = (
            inputs[name].detach().double().requires_grad_() for name in ("hidden", "head")
        )
        result: tuple[Tensor, ...] = our_call(
            "reference", case, {**inputs, "hidden": hidden, "head": head}
        )()
        return result

    def gate(self, case: Case, expected: tuple[Tensor, ...], output: Any) -> Verdict:
        error = max(
            relative_error(given, right) for given, right in zip(output, expected, strict=True)
        )
        return Verdict(error, LIMITS[case.dtype], "relative error")


def with_gradients(inputs: Inputs, loss: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """(loss, gradient of the hidden states, gradient of the head)."""

    def both() -> tuple[Tensor, ...]:
        value = loss()
        return (value.detach(), *torch.autograd.grad(value, (inputs["hidden"], inputs["head"])))

    return both


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    return with_gradients(
        inputs,
        lambda: linear_cross_entropy(
            inputs["hidden"],
            inputs["head"],
            inputs["targets"],
            inputs["weights"],
            inputs["groups"],
            num_groups=NUM_GROUPS,
            implementation=implementation,
        )[0],
    )


def whole_logits(inputs: Inputs) -> Tensor:
    """Return the loss from all logits, float32 inside the loss."""
    logits = linear(inputs["hidden"], inputs["head"]).float()
    loss: Tensor = (
        inputs["weights"] * cross_entropy(logits, inputs["targets"], reduction="none")
    ).sum()
    return loss


class LogitsProvider(TorchProvider):
    """torch's linear layer and cross entropy."""

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        function = self.function
        return with_gradients(inputs, lambda: function(inputs))
