"""Training attention: causal, and packed documents; forward, backward, or both.

Legend: B rows, T tokens, H heads, D head dimension. Documents have equal lengths as far as T
allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cm3kernels.attention import IMPLEMENTATIONS, AttentionPlan, attention
from cm3lab.benchmarks.kernels.ops.ours import OurImplementation
from cm3run.benchmarks import (
    Case,
    Inputs,
    Op,
    Provider,
    Shape,
    ShapeKey,
    Verdict,
    Where,
    directed,
    in_float64,
    relative_error,
)

#: Dtype -> largest relative error of an output or gradient; low precisions lose accuracy in the products' inputs.
LIMITS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2}
#: (rows, heads, tokens, head dimension)
SHAPES = {
    ("cuda", "full"): [(8, 16, 4096, 64), (8, 16, 4096, 96), (1, 32, 4096, 128)],
    ("cuda", "quick"): [(8, 16, 4096, 64), (1, 32, 4096, 128)],
    ("cpu", "full"): [(2, 8, 512, 64), (1, 8, 1024, 128)],
    ("cpu", "quick"): [(1, 8, 256, 64)],
}
DRY_SHAPES = [(1, 2, 24, 32)]
#: Numbers of documents in a row, by default.
DOCUMENTS = {"full": (1, 3, 16), "quick": (1, 3), "dry": (1, 3)}
#: Scores of all pairs that an implementation may keep in memory.
MOST_SCORES = 2**30


class AttentionOp(Op):
    """`cm3kernels.attention` and its alternatives."""

    name, baseline, limits = "attention", "sdpa flash", LIMITS
    keys: ClassVar = {
        "B": ShapeKey("rows"),
        "H": ShapeKey("heads"),
        "T": ShapeKey("tokens of a row"),
        "D": ShapeKey("head dimension"),
        "documents": ShapeKey("packed documents of a row, as equal as possible"),
    }
    gradients = ("q", "k", "v")
    # Forward: q, k, v in, output out. Backward: those and the output's gradient in, three gradients out.
    costs = (
        "bytes 4 B H T D w, backward 8 B H T D w; operations 4 D for each visible pair "
        "(B H T (T + 1) / 2 of one document), backward 2.5 times that"
    )

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, IMPLEMENTATIONS, probe, our_call, our_refusal)
            for name in IMPLEMENTATIONS
        ]
        self.providers += [
            SDPAProvider(name, backend)
            for name, backend in (
                ("flash", SDPBackend.FLASH_ATTENTION),
                ("cudnn", SDPBackend.CUDNN_ATTENTION),
                ("efficient", SDPBackend.EFFICIENT_ATTENTION),
                ("math", SDPBackend.MATH),
            )
        ]

    def shapes(self, where: Where) -> list[Shape]:
        return [
            {**dict(zip("BHTD", size, strict=True)), "documents": number}
            for size in (DRY_SHAPES if where.dry else SHAPES[where.target, where.size])
            for number in DOCUMENTS[where.size]
        ]

    def refusal(self, shape: Any) -> str | None:
        if shape["documents"] > shape["T"]:
            return f"documents={shape['documents']} is more than T={shape['T']}"
        return None

    def cost(self, shape: Any, dtype: torch.dtype, *, backward: bool) -> tuple[int, int]:
        B, H, T, D = (shape[name] for name in "BHTD")
        lengths = document_lengths(T, shape["documents"])
        forward = 4 * D * B * H * sum(length * (length + 1) // 2 for length in lengths)
        tensor = B * T * H * D * dtype.itemsize
        return (8 * tensor, forward * 5 // 2) if backward else (4 * tensor, forward)

    def reference_bytes(self, case: Case) -> int:
        """The scores of a head in float64, and what a backward keeps."""
        return 8 * 6 * int(case.parameters["T"]) ** 2

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        B, T, H, D = (case.parameters[name] for name in "BTHD")
        generator = torch.Generator(where.device).manual_seed(seed)
        made: Inputs = {
            name: torch.randn(B, T, H, D, generator=generator, device=where.device).to(case.dtype)
            for name in ("q", "k", "v", "grad")
        }
        lengths = document_lengths(T, case.parameters["documents"])
        first = torch.tensor(
            [sum(lengths[:place]) for place in range(len(lengths))], dtype=torch.int32
        )
        starts = torch.repeat_interleave(first, torch.tensor(lengths))
        made["kv_start"] = (
            starts.expand(B, T).contiguous().to(where.device) if len(lengths) > 1 else None
        )
        return made

    def reference(self, case: Case, inputs: Inputs) -> Tensor:
        q, k, v = (inputs[name] for name in "qkv")
        return attention(q, k, v, kv_start=inputs["kv_start"], implementation="reference")

    def expected(self, case: Case, inputs: Inputs) -> dict[tuple[int, int], tuple[Tensor, ...]]:
        """Return the results for the first and the last row and head, by row and head."""
        B, H = case.parameters["B"], case.parameters["H"]
        found = {}
        for row, head in sorted({(0, 0), (B - 1, H - 1)}):
            own: Inputs = {name: part(inputs[name], row, head) for name in ("q", "k", "v", "grad")}
            own = in_float64(own, self.gradients if case.direction != "forward" else ())
            starts = inputs["kv_start"]
            own["kv_start"] = None if starts is None else starts[row : row + 1]
            found[row, head] = _tensors(self._timed(case, own)())
        return found

    def _timed(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        return directed(self, case, inputs, lambda: self.reference(case, inputs))

    def gate(self, case: Case, expected: Any, output: Any) -> Verdict:
        errors = [
            relative_error(part(tensor, row, head), right)
            for (row, head), rights in expected.items()
            for tensor, right in zip(_tensors(output), rights, strict=True)
        ]
        return Verdict(
            max(errors), LIMITS[str(case.dtype).removeprefix("torch.")], "relative error"
        )


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def part(tensor: Tensor, row: int, head: int) -> Tensor:
    """Return one head of one row, [1, T, 1, D]."""
    return tensor[row : row + 1, :, head : head + 1]


def document_lengths(num_tokens: int, num_documents: int) -> list[int]:
    """Return lengths that are as equal as possible.

    >>> document_lengths(16, 3)
    [6, 5, 5]
    """
    short, longer = divmod(num_tokens, num_documents)
    return [short + (place < longer) for place in range(num_documents)]


def probe(case: Case, where: Where) -> Tensor:
    return torch.empty(1, 1, 1, case.parameters["D"], dtype=case.dtype, device=where.device)


def plan_of(case: Case, inputs: Inputs) -> AttentionPlan:
    """Return what all layers of a model share."""
    T = case.parameters["T"]
    return AttentionPlan(T, T, inputs["kv_start"])


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    plan = plan_of(case, inputs)
    return lambda: attention(
        *(inputs[name] for name in "qkv"),
        kv_start=inputs["kv_start"],
        plan=plan,
        implementation=implementation,
    )


def our_refusal(implementation: str, case: Case, where: Where) -> str | None:
    B, T, H = (case.parameters[name] for name in "BTH")
    if implementation == "reference" and B * H * T * T * 4 > MOST_SCORES:
        return f"keeps {B * H * T * T * 4 / 2**30:.0f} GiB of scores in memory"
    return None


class SDPAProvider(Provider):
    """torch's function with one backend."""

    def __init__(self, name: str, backend: SDPBackend) -> None:
        self.name, self._backend = f"sdpa {name}", backend

    def enabled(self, case: Case, where: Where) -> str | None:
        if where.device.type == "cpu" and self._backend in (
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
        ):
            return "needs CUDA"
        masked = case.parameters["documents"] > 1
        if masked and where.device.type == "cuda" and self._backend == SDPBackend.FLASH_ATTENTION:
            return "has no mask, which documents need"
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        mask = None if inputs["kv_start"] is None else plan_of(case, inputs).mask()

        def forward() -> Tensor:
            q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
            with sdpa_kernel(self._backend):
                return scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None
                ).transpose(1, 2)

        return forward
