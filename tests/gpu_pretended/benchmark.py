"""Every provider of `cm3 bench kernels` that runs on CUDA, prepared, timed and captured in a graph on a pretended card, on the
smallest shapes: what each does, as JSON.

    LD_PRELOAD=LIBRARY python benchmark.py
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pretended_cuda
import torch
import torch._dynamo
from scenarios import FIRST, seen

from cm3lab.benchmarks import measure
from cm3lab.benchmarks.kernels.ops import add
from cm3run.benchmarks import BenchmarkRegistry, Case, Op, Provider, Where, directed

#: These are torch's compiler's, or wait for values that are not there.
LEFT_OUT = ("compiled", "huggingface")
WHERE = Where(FIRST, "cuda", "quick")


class Card(measure.AbsentCUDA):
    """The pretended graphs; events measure nothing."""

    def __init__(self) -> None:
        self.CUDAGraph, self.graph = torch.cuda.CUDAGraph, torch.cuda.graph  # type: ignore[misc,method-assign]  # stand-ins


def runs(machine: Any) -> Iterator[tuple[str, Any]]:
    registry = BenchmarkRegistry()
    add(registry)
    for op in registry.ops.values():
        shapes = op.shapes(Where(FIRST, "cuda", "dry"))
        for case in op.cases(WHERE, shapes[:1], [], op.directions) if shapes else []:
            for provider in op.providers:
                if provider.name.endswith(LEFT_OUT) or provider.enabled(case, WHERE) is not None:
                    continue
                machine.reset()
                yield f"{op.name} {case.direction} {provider.name}", measured(op, case, provider)


def measured(op: Op, case: Case, provider: Provider) -> str:
    """Return how a provider was timed."""
    inputs = op.inputs(case, WHERE, 0)
    for name in op.gradients if case.direction != "forward" else ():
        inputs[name].requires_grad_()
    call = directed(op, case, inputs, provider.prepare(case, inputs))
    return measure.CUDAStopwatch(0.0, 1, Card()).time([call]).method


def main() -> None:
    pretended_cuda.pretend()
    # random numbers of the card's own generator; their values are nobody's
    torch.Generator = lambda device=None: SimpleNamespace(manual_seed=lambda seed: None)  # type: ignore[misc,assignment]  # a stand-in
    found = {}
    with pretended_cuda.machine() as machine:
        for name, method in runs(machine):
            found[name] = seen(machine) | {"method": method}
    pretended_cuda.end(found)


if __name__ == "__main__":
    main()
