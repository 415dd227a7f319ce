"""Our own implementations as providers: one per name in an op's dispatch, `cm3/NAME`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cm3kernels.dispatch import Implementation
from cm3run.benchmarks import Case, Inputs, Provider, Where


class OurImplementation(Provider):
    """One implementation of one of our ops.

    Args:
        name: its name in `implementations`.
        implementations: the op's, from `cm3kernels.dispatch`.
        probe: (case, where) -> a small tensor with the device, dtype and sizes by which an implementation refuses.
        call: (name, case, inputs) -> the forward pass.
        refusal: (name, case, where) -> another reason not to run.
    """

    def __init__(
        self,
        name: str,
        implementations: Mapping[str, Implementation],
        probe: Callable[[Case, Where], Tensor],
        call: Callable[[str, Case, Inputs], Callable[[], Any]],
        refusal: Callable[[str, Case, Where], str | None] = lambda name, case, where: None,
    ) -> None:
        self.name, self.implementation = f"cm3/{name}", name
        self._refuses, self._probe = implementations[name].refusal, probe
        self._call, self._refusal = call, refusal

    def enabled(self, case: Case, where: Where) -> str | None:
        if (reason := self._refuses(self._probe(case, where))) is not None:
            return reason.partition("; next:")[0]
        interpreted = self.implementation == "triton" and where.device.type == "cpu"
        if interpreted and not where.dry:
            return "Triton's interpreter is only for tests and not timed"
        if interpreted and case.dtype == torch.bfloat16:
            return "Triton's interpreter computes bfloat16 wrongly"
        return self._refusal(self.implementation, case, where)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return self._call(self.implementation, case, inputs)
