"""Our own implementations as providers: one per name in an op's dispatch, `cm3/NAME`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from cm3run.benchmarks import Case, Inputs, Provider, Where


class OurImplementation(Provider):
    """One implementation of one of our ops.

    Args:
        implementation: its name in the op's `IMPLEMENTATIONS`.
        call: (implementation, case, inputs) -> the timed function.
        refusal: (case, where) -> an op-specific reason not to run.
    """

    def __init__(
        self,
        implementation: str,
        call: Callable[[str, Case, Inputs], Callable[[], Any]],
        refusal: Callable[[str, Case, Where], str | None] = lambda name, case, where: None,
    ) -> None:
        self.name, self.implementation = f"cm3/{implementation}", implementation
        self._call, self._refusal = call, refusal

    def enabled(self, case: Case, where: Where) -> str | None:
        if self.implementation.startswith("triton"):
            if importlib.util.find_spec("triton") is None:
                return "Triton is not installed"
            if where.device.type == "cpu" and not where.dry:
                return "Triton's interpreter is only for tests and not timed"
            if where.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
                return "on a CPU a dry run needs TRITON_INTERPRET=1"
        return self._refusal(self.implementation, case, where)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return self._call(self.implementation, case, inputs)
