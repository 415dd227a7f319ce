"""Training attention: causal, and packed documents; forward, and forward with backward.

Legend: B rows, T tokens, H heads, D head dimension. Documents have equal lengths as far as T
allows.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cm3kernels.attention import IMPLEMENTATIONS, AttentionPlan, attention
from cm3lab.benchmarks.ops.ours import OurImplementation
from cm3run.benchmarks import (
    Case,
    Inputs,
    Op,
    Provider,
    Verdict,
    Where,
    compiling_refusal,
    relative_error,
)

#: Largest relative error of an output or gradient; low precisions lose accuracy in the products'
#: inputs.
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SHAPES = {
    ("cuda", "full"): [(8, 16, 4096, 64), (8, 16, 4096, 96), (1, 32, 4096, 128)],
    ("cuda", "quick"): [(8, 16, 4096, 64), (1, 32, 4096, 128)],
    ("cpu", "full"): [(2, 8, 512, 64), (1, 8, 1024, 128)],
    ("cpu", "quick"): [(1, 8, 256, 64)],
}
#: Rows of four documents, as in training of a small decoder on a CPU with bfloat16 instructions.
TRAINED_SHAPE, TRAINED_DOCUMENTS = (17, 3, 352, 64), 4
DRY_SHAPES = [(1, 2, 24, 32)]
#: Providers that are torch's own calls -> their names as implementations of the op, for `dispatch.MEASURED`.
IMPLEMENTATION_OF = {"flex": "flex", "flex flash": "flex_flash", "sdpa cudnn": "cudnn"}


class AttentionOp(Op):
    """`cm3kernels.attention` and its alternatives."""

    name, baseline = "attention", "sdpa flash"

    def __init__(self) -> None:
        super().__init__()
        self.providers += [
            OurImplementation(name, our_call, our_refusal)
            for name in IMPLEMENTATIONS
            if name not in IMPLEMENTATION_OF.values()
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
        self.providers += [
            FlexProvider("flex", "AUTO"),
            FlexProvider("flex flash", "FLASH"),
            FA3Provider(),
            XformersProvider(),
        ]

    def cases(self, where: Where) -> list[Case]:
        shapes = DRY_SHAPES if where.dry else SHAPES[where.target, where.size]
        documents = {"full": (1, 3, 16), "quick": (1, 3), "dry": (1, 3)}[where.size]
        dtype = torch.bfloat16 if where.target == "cuda" and not where.dry else torch.float32
        cases = [
            attention_case(shape, num_documents, backward, dtype)
            for shape in shapes
            for num_documents in documents
            for backward in (False, True)
        ]
        if where.target == "cpu" and not where.dry:
            cases.append(attention_case(TRAINED_SHAPE, TRAINED_DOCUMENTS, True, torch.bfloat16))
        return cases

    def inputs(self, case: Case, where: Where, seed: int) -> Inputs:
        B, T, H, D = (case.parameters[name] for name in "BTHD")
        generator = torch.Generator(where.device).manual_seed(seed)
        made: Inputs = {
            name: torch.randn(B, T, H, D, generator=generator, device=where.device).to(case.dtype)
            for name in ("q", "k", "v", "grad")
        }
        if case.parameters["backward"]:
            for name in "qkv":
                made[name].requires_grad_()
        lengths = document_lengths(T, case.parameters["num_documents"])
        made["lengths"] = lengths
        first = torch.tensor(
            [sum(lengths[:place]) for place in range(len(lengths))], dtype=torch.int32
        )
        starts = torch.repeat_interleave(first, torch.tensor(lengths))
        made["kv_start"] = (
            starts.expand(B, T).contiguous().to(where.device) if len(lengths) > 1 else None
        )
        return made

    def expected(self, case: Case, inputs: Inputs) -> dict[tuple[int, int], tuple[Tensor, ...]]:
        """Return the results for the first and the last row and head: (row, head) -> output and, with a backward, the
        three gradients."""
        B, H = case.parameters["B"], case.parameters["H"]
        found = {}
        for row, head in sorted({(0, 0), (B - 1, H - 1)}):
            q, k, v, grad = (
                inputs[name][row : row + 1, :, head : head + 1].detach().double()
                for name in ("q", "k", "v", "grad")
            )
            kv_start = None if inputs["kv_start"] is None else inputs["kv_start"][row : row + 1]
            q, k, v = (tensor.requires_grad_(case.parameters["backward"]) for tensor in (q, k, v))
            out = attention(q, k, v, kv_start=kv_start, implementation="reference")
            gradients = (
                torch.autograd.grad(out, (q, k, v), grad) if case.parameters["backward"] else ()
            )
            found[row, head] = tuple(tensor.detach() for tensor in (out, *gradients))
        return found

    def gate(self, case: Case, expected: Any, output: Any) -> Verdict:
        outputs = output if isinstance(output, tuple) else (output,)
        errors = [
            relative_error(tensor[row : row + 1, :, head : head + 1], right)
            for (row, head), tensors in expected.items()
            for tensor, right in zip(outputs, tensors, strict=True)
        ]
        return Verdict(max(errors), LIMITS[case.dtype], "relative error")


def document_lengths(num_tokens: int, num_documents: int) -> list[int]:
    """Return lengths that are as equal as possible.

    >>> document_lengths(16, 3)
    [6, 5, 5]
    """
    short, longer = divmod(num_tokens, num_documents)
    return [short + (place < longer) for place in range(num_documents)]


def attention_case(
    shape: tuple[int, int, int, int], num_documents: int, backward: bool, dtype: torch.dtype
) -> Case:
    """Return a case; its operations are a multiply and an add in both products for each visible pair, and 2.5 times
    that for a backward. `shape`: B, H, T, D."""
    B, H, T, D = shape
    pairs = B * H * sum(length * (length + 1) // 2 for length in document_lengths(T, num_documents))
    forward = 4 * D * pairs
    tensor = B * T * H * D * dtype.itemsize
    # Forward: q, k, v in, output out. Backward: those and the output's gradient in, three gradients
    # out.
    num_bytes = (4 + (8 if backward else 0)) * tensor
    direction = "forward+backward" if backward else "forward"
    documents = "causal" if num_documents == 1 else f"{num_documents} documents"
    return Case(
        f"B{B} H{H} T{T} D{D} {documents} {direction}",
        {"B": B, "T": T, "H": H, "D": D, "num_documents": num_documents, "backward": backward},
        dtype,
        num_bytes,
        int(forward * (3.5 if backward else 1)),
    )


def with_backward(case: Case, inputs: Inputs, forward: Callable[[], Tensor]) -> Callable[[], Any]:
    """Return the forward, or (output, gradients of q, k, v); outputs are [B, T, H, D]."""
    if not case.parameters["backward"]:
        return forward

    def both() -> tuple[Tensor, ...]:
        out = forward()
        return (
            out.detach(),
            *torch.autograd.grad(out, (inputs["q"], inputs["k"], inputs["v"]), inputs["grad"]),
        )

    return both


def our_call(implementation: str, case: Case, inputs: Inputs) -> Callable[[], Any]:
    T = case.parameters["T"]
    plan = AttentionPlan(T, T, inputs["kv_start"])  # shared by all layers of a model
    return with_backward(
        case,
        inputs,
        lambda: attention(
            *(inputs[name] for name in "qkv"),
            kv_start=inputs["kv_start"],
            plan=plan,
            implementation=implementation,
        ),
    )


def our_refusal(implementation: str, case: Case, where: Where) -> str | None:
    B, T, H = (case.parameters[name] for name in "BTH")
    if implementation == "reference" and B * H * T * T * 4 > 2**30:
        return f"keeps {B * H * T * T * 4 / 2**30:.0f} GiB of scores in memory"
    if where.device.type == "cuda":
        q = torch.empty(1, 1, 1, case.parameters["D"], dtype=case.dtype, device=where.device)
        return IMPLEMENTATIONS[implementation].refusal(q)
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
        masked = case.parameters["num_documents"] > 1
        if masked and where.device.type == "cuda" and self._backend == SDPBackend.FLASH_ATTENTION:
            return "has no mask, which documents need"
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        T = case.parameters["T"]
        mask = (
            None if inputs["kv_start"] is None else AttentionPlan(T, T, inputs["kv_start"]).mask()
        )

        def forward() -> Tensor:
            q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
            with sdpa_kernel(self._backend):
                return scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=mask is None
                ).transpose(1, 2)

        return with_backward(case, inputs, forward)


class FlexProvider(Provider):
    """FlexAttention, compiled, with a precomputed block mask; `backend` is its own, of kernels."""

    def __init__(self, name: str, backend: str) -> None:
        self.name, self._backend = name, backend

    def enabled(self, case: Case, where: Where) -> str | None:
        if self._backend == "FLASH":
            q = torch.empty(1, 1, 1, 1, device=where.device)
            if (reason := IMPLEMENTATIONS["flex_flash"].refusal(q)) is not None:
                return reason.partition("; next:")[0]
        if where.device.type == "cpu" and case.parameters["backward"]:
            return "has no backward on a CPU"
        return compiling_refusal(where)

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        from torch.nn.attention.flex_attention import create_block_mask

        T, kv_start, device = case.parameters["T"], inputs["kv_start"], inputs["q"].device
        start_T = (
            torch.zeros(T, dtype=torch.int32, device=device) if kv_start is None else kv_start[0]
        )

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j <= i) & (j >= start_T[i])

        mask = create_block_mask(visible, None, None, T, T, device=device.type)
        run = compiled_flex()

        def forward() -> Tensor:
            out: Tensor = run(
                *(inputs[name].transpose(1, 2) for name in "qkv"),
                block_mask=mask,
                kernel_options={"BACKEND": self._backend},
            )
            return out.transpose(1, 2)

        return with_backward(case, inputs, forward)


_compiled: list[Any] = []


def compiled_flex() -> Any:
    """One compiled function for all cases; a compilation for each shape is cached inside."""
    from torch.nn.attention.flex_attention import flex_attention

    if not _compiled:
        _compiled.append(torch.compile(flex_attention, dynamic=False))
    return _compiled[0]


class FA3Provider(Provider):
    """FlashAttention 3 (the module `flash_attn_interface`), for packed documents, whose lengths it needs on the host. It
    can't be an implementation of the op, which reads only tensors on the device."""

    name = "flash-attn 3"

    def enabled(self, case: Case, where: Where) -> str | None:
        if where.device.type == "cpu":
            return "needs CUDA"
        if importlib.util.find_spec("flash_attn_interface") is None:
            return "flash_attn_interface is not installed"
        if torch.cuda.get_device_capability(where.device)[0] != 9:
            return "is for sm_90"
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        run = importlib.import_module("flash_attn_interface").flash_attn_varlen_func
        lengths = torch.tensor([0, *inputs["lengths"] * case.parameters["B"]], dtype=torch.int32)
        begins = lengths.cumsum(0, dtype=torch.int32).to(inputs["q"].device)
        longest = max(inputs["lengths"])

        def forward() -> Tensor:
            q, k, v = (inputs[name].flatten(0, 1) for name in "qkv")
            out = run(q, k, v, begins, begins, longest, longest, causal=True)
            out = out[0] if isinstance(out, tuple) else out  # older versions also return the lse
            return out.view(inputs["q"].shape)  # type: ignore[no-any-return]  # not typed

        return with_backward(case, inputs, forward)


class XformersProvider(Provider):
    """xformers' attention, from `mslk` if installed (its new package); rows and documents as one packed
    sequence."""

    name = "xformers"

    def enabled(self, case: Case, where: Where) -> str | None:
        if where.device.type == "cpu":
            return "has no attention on a CPU"
        module = xformers_module()
        return module if isinstance(module, str) else None

    def prepare(self, case: Case, inputs: Inputs) -> Callable[[], Any]:
        fmha = xformers_module()
        assert not isinstance(fmha, str)
        bias = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(
            inputs["lengths"] * case.parameters["B"]
        )

        def forward() -> Tensor:
            q, k, v = (inputs[name].flatten(0, 1)[None] for name in "qkv")
            out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=bias)
            return out.view(inputs["q"].shape)

        return with_backward(case, inputs, forward)


def xformers_module() -> Any:
    """Return the module with `memory_efficient_attention`, or the reason (a string) why there is none."""
    reasons = []
    for name in ("mslk.attention.fmha", "xformers.ops.fmha"):
        try:
            return importlib.import_module(name)
        except (
            ImportError,
            OSError,
        ) as error:  # OSError: its libraries were built for another CUDA
            reasons.append(f"{name}: {str(error).splitlines()[0][:80]}")
    return "; ".join(reasons)
