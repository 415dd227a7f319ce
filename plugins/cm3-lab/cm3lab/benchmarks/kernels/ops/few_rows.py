"""Products of few rows with a fixed weight, as a decoder's step on a CPU makes them: compiled code, compared with torch.

Legend: M rows, K inputs, V outputs. The dtype is that of the weight's products; rows and results are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from cm3kernels.few_rows import FewRowsProduct, Unavailable, library
from cm3plugins.decoders.packed import compiled_folder
from cm3run.benchmarks import Case, Inputs, Op, Provider, Shape, ShapeKey, TorchProvider, Where

#: Dtype of the products -> the op's name for it.
PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}
#: (rows, inputs, outputs)
SHAPES = {
    "full": [(M, K, V) for K, V in ((1024, 4096), (4096, 4096)) for M in (2, 16)],
    "quick": [(2, 1024, 4096)],
    "dry": [(3, 40, 20)],
}


class FewRowsOp(Op):
    """`cm3kernels.few_rows.FewRowsProduct` and torch's product."""

    name, baseline = "few_rows", "torch"
    keys: ClassVar = {
        "M": ShapeKey("rows"),
        "K": ShapeKey("inputs"),
        "V": ShapeKey("outputs"),
    }
    #: In bfloat16 and int8, inputs and weights are rounded.
    limits: ClassVar = {"float32": 1e-5, "bfloat16": 1.5e-2, "int8": 3e-2}
    costs = "bytes K V w + 4 M (K + V); operations 2 M K V"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [CompiledProvider(), PlainProvider("torch", plain, compiled=False)]

    def shapes(self, where: Where) -> list[Shape]:
        if where.target != "cpu":
            return []
        return [dict(zip("MKV", size, strict=True)) for size in SHAPES[where.size]]

    def dtypes(self, where: Where) -> tuple[str, ...]:
        return tuple(self.limits)

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        M, K, V = (shape[name] for name in "MKV")
        return K * V * dtype.itemsize + 4 * M * (K + V), 2 * M * K * V

    def reference_bytes(self, case: Case) -> int:
        """The weight in float32 and float64."""
        return 16 * int(case.parameters["K"]) * int(case.parameters["V"])

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        M, K, V = (case.parameters[name] for name in "MKV")
        generator = torch.Generator(where.device).manual_seed(seed)
        x, weight = (
            torch.randn(rows, K, generator=generator, device=where.device) for rows in (M, V)
        )
        return {"x": x, "weight": weight * K**-0.5}

    def reference(self, case: Case, inputs: Inputs) -> Tensor:
        return linear(inputs["x"], inputs["weight"])


class CompiledProvider(Provider):
    """Our compiled code."""

    name = "cm3/native"

    def enabled(self, case: Case, where: Where) -> str | None:
        try:
            library(compiled_folder())
        except Unavailable as reason:
            return str(reason)
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        precision = PRECISIONS[str(case.dtype).removeprefix("torch.")]
        product = FewRowsProduct(inputs["weight"], precision, compiled_folder())
        return lambda: product(inputs["x"])


class PlainProvider(TorchProvider):
    """torch's product, of a weight that has the dtype already."""

    def enabled(self, case: Case, where: Where) -> str | None:
        if case.dtype == torch.int8:
            return "has no product of float rows and an int8 weight"
        return super().enabled(case, where)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return super().prepare(case, {**inputs, "weight": inputs["weight"].to(case.dtype)})


def plain(inputs: Inputs) -> Tensor:
    """Return the product in the weight's dtype, as float32."""
    weight = inputs["weight"]
    return linear(inputs["x"].to(weight.dtype), weight).float()
