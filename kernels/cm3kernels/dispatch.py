"""Chooses the implementation of an op: by name, rejected with a reason, never replaced silently.

The tables at the end list the implementations of each op, fastest first, and what each rejects; `choose` selects one.
Triton's are in `OP/triton.py`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3kernels._host import interprets

_log = logging.getLogger("cm3kernels")
_said: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Args:
        load: returns the function; imports its requirements only then (called every time: a repeated import
            costs nothing).
        refusal: why it can't run on these tensors, ending with the next step; None if it
            can.
        automatic_on: device types for which "auto" may choose it; None: all.
    """

    load: Callable[[], Callable[..., Any]]
    refusal: Callable[[Tensor], str | None] = lambda tensor: None
    automatic_on: tuple[str, ...] | None = None


def choose(
    op: str,
    implementation: str,
    available: Mapping[str, Implementation],
    tensor: Tensor,
) -> Callable[..., Any]:
    """Return the implementation of that name; "auto" is the first of `available` that supports the tensor, and
    logs its choice once (logger "cm3kernels", level info; a warning if a faster one is intended for this device
    but can't run).

    Args:
        op: name of the op, for the message.
        implementation: "auto" or a key of `available`.
        available: implementations, fastest first.
        tensor: one of the arguments; its device and dtype decide.

    Raises:
        ValueError: there is no such implementation (lists those available), or it can't run here (states the
            reason).
    """
    if implementation == "auto":
        passed_over: list[str] = []
        for name, candidate in available.items():
            on = candidate.automatic_on
            if on is None or tensor.device.type in on:
                if (reason := candidate.refusal(tensor)) is None:
                    _say(op, name, tensor, passed_over)
                    return candidate.load()
                passed_over.append(f"{name!r} can't: {reason}")
        reasons = "; ".join(
            f"{name}: {candidate.refusal(tensor)}" for name, candidate in available.items()
        )
        raise ValueError(
            f"{op}: no implementation supports this tensor\n  cause: {reasons}\n  next: use another "
            "device or dtype"
        )
    if implementation not in available:
        raise ValueError(
            f"{op}: implementation {implementation!r} is not available\n  next: use 'auto' or "
            "one of: "
            f"{', '.join(available)}"
        )
    if (reason := available[implementation].refusal(tensor)) is not None:
        raise ValueError(f"{op}: implementation {implementation!r} can't run here: {reason}")
    return available[implementation].load()


def _say(op: str, name: str, tensor: Tensor, passed_over: list[str]) -> None:
    if torch.compiler.is_compiling() or (key := (op, name, tensor.device.type)) in _said:
        return
    _said.add(key)
    if passed_over:
        _log.warning("%s: %r runs on %s; %s", op, name, tensor.device, "; ".join(passed_over))
    else:
        _log.info("%s: %r runs on %s", op, name, tensor.device)


def triton_refusal(tensor: Tensor) -> str | None:
    """Return why a Triton kernel can't run on this tensor: no Triton, or neither a GPU nor the interpreter. None
    if it can."""
    if importlib.util.find_spec("triton") is None:
        return (
            "Triton is not installed; next: pip install 'cm3leon[triton]', or implementation='auto'"
        )
    if tensor.device.type not in ("cuda", "cpu"):
        return (
            f"the tensor is on {tensor.device}; next: move it to a CUDA device, or "
            "implementation='auto'"
        )
    if tensor.device.type == "cpu" and not interprets():
        return (
            "the tensor is on the CPU; next: move it to a CUDA device, use implementation='auto', "
            "or set TRITON_INTERPRET=1 before starting Python to run kernels in Triton's (slow) "
            "interpreter"
        )
    return None


def triton_implementation(
    load: Callable[[], Callable[..., Any]], refusal: Callable[[Tensor], str | None] = triton_refusal
) -> Implementation:
    """A Triton kernel: "auto" chooses it for CUDA tensors; by name it also runs on CPU tensors, in the
    interpreter."""
    return Implementation(load, refusal, automatic_on=("cuda",))


#: A whole tile of queries must fit in registers.
LARGEST_HEAD_DIM = 128
#: Maximum number of ids whose masses, with 40 fractional bits, fit in an int64 sum.
LARGEST_VOCABULARY = 2**22
#: Most columns of a row that a program normalises in its registers.
LARGEST_WIDTH = 16_384


def _attention_triton() -> Callable[..., Any]:
    from cm3kernels.attention.triton import attention_triton

    return attention_triton


def _attention_sdpa() -> Callable[..., Any]:
    from cm3kernels.attention.sdpa import attention_sdpa

    return attention_sdpa


def _attention_reference() -> Callable[..., Any]:
    from cm3kernels.attention.reference import attention_reference

    return attention_reference


def _attention_triton_refusal(q: Tensor) -> str | None:
    if (reason := triton_refusal(q)) is not None:
        return reason
    if q.shape[3] > LARGEST_HEAD_DIM:
        return (
            f"the head dimension is {q.shape[3]}, but the kernels support at most {LARGEST_HEAD_DIM}; "
            "next: implementation='sdpa'"
        )
    if q.dtype == torch.float64 and q.device.type == "cuda":
        return (
            "float64 is only supported for checks in the interpreter; next: implementation='reference', or a "
            "narrower dtype"
        )
    return None


def _no_lse(q: Tensor) -> str:
    return (
        "torch's function returns no lse; next: implementation='reference', "
        "or 'triton' on a CUDA device"
    )


ATTENTION = {
    "triton": triton_implementation(_attention_triton, _attention_triton_refusal),
    "sdpa": Implementation(_attention_sdpa),
    "reference": Implementation(_attention_reference),
}
#: Implementations that also return the logarithm of the softmax's denominator.
ATTENTION_WITH_LSE = {
    name: Implementation(_attention_sdpa, _no_lse) if name == "sdpa" else implementation
    for name, implementation in ATTENTION.items()
}


def _segment_decode_triton() -> Callable[..., Any]:
    from cm3kernels.segment_decode.triton import segment_decode_triton

    return segment_decode_triton


def _segment_decode_grouped() -> Callable[..., Any]:
    from cm3kernels.segment_decode.grouped import segment_decode_grouped

    return segment_decode_grouped


def _segment_decode_reference() -> Callable[..., Any]:
    from cm3kernels.segment_decode.reference import segment_decode_reference

    return segment_decode_reference


def _only_cpu(tensor: Tensor) -> str | None:
    if tensor.device.type != "cpu":
        return (
            f"the tensor is on {tensor.device}; next: use 'triton', 'reference', or tensors on the "
            "CPU"
        )
    return None


SEGMENT_DECODE = {
    "triton": triton_implementation(_segment_decode_triton),
    "torch": Implementation(_segment_decode_grouped, _only_cpu),
    "reference": Implementation(_segment_decode_reference),
}


def _guided_sample_triton() -> Callable[..., Any]:
    from cm3kernels.guided_sample.triton import guided_sample_triton

    return guided_sample_triton


def _guided_sample_eager() -> Callable[..., Any]:
    from cm3kernels.guided_sample.eager import guided_sample_eager

    return guided_sample_eager


def _guided_sample_reference() -> Callable[..., Any]:
    from cm3kernels.guided_sample.reference import guided_sample_reference

    return guided_sample_reference


def _guided_sample_triton_refusal(logits_SV: Tensor) -> str | None:
    if logits_SV.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return (
            f"logits_SV is {logits_SV.dtype}, but the kernels support float32, bfloat16 and float16; "
            "next: cast it, or implementation='auto'"
        )
    if logits_SV.shape[1] > LARGEST_VOCABULARY:
        return (
            f"logits_SV has {logits_SV.shape[1]} ids, but the kernels support {LARGEST_VOCABULARY}; "
            "next: implementation='auto'"
        )
    return triton_refusal(logits_SV)


GUIDED_SAMPLE = {
    "triton": triton_implementation(_guided_sample_triton, _guided_sample_triton_refusal),
    "eager": Implementation(_guided_sample_eager),
    "reference": Implementation(_guided_sample_reference),
}


def _linear_cross_entropy_triton() -> Callable[..., Any]:
    from cm3kernels.linear_cross_entropy.triton import linear_cross_entropy_triton

    return linear_cross_entropy_triton


def _linear_cross_entropy_chunked() -> Callable[..., Any]:
    from cm3kernels.linear_cross_entropy.chunked import linear_cross_entropy_chunked

    return linear_cross_entropy_chunked


def _linear_cross_entropy_reference() -> Callable[..., Any]:
    from cm3kernels.linear_cross_entropy.reference import linear_cross_entropy_reference

    return linear_cross_entropy_reference


LINEAR_CROSS_ENTROPY = {
    "triton": triton_implementation(_linear_cross_entropy_triton),
    "torch": Implementation(_linear_cross_entropy_chunked),
    "reference": Implementation(_linear_cross_entropy_reference),
}


def _add_norm_triton() -> Callable[..., Any]:
    from cm3kernels.add_norm.triton import add_norm_triton

    return add_norm_triton


def _add_norm_reference() -> Callable[..., Any]:
    from cm3kernels.add_norm.reference import add_norm_reference

    return add_norm_reference


def _narrow_refusal(tensor: Tensor) -> str | None:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return (
            f"the tensor is {tensor.dtype}, but the kernels support float32, bfloat16 and float16; "
            "next: cast it, or implementation='auto'"
        )
    return triton_refusal(tensor)


def _add_norm_triton_refusal(x: Tensor) -> str | None:
    if x.shape[1] > LARGEST_WIDTH:
        return (
            f"the width is {x.shape[1]}, but the kernel supports at most {LARGEST_WIDTH}; next: "
            "implementation='auto'"
        )
    return _narrow_refusal(x)


ADD_NORM = {
    "triton": triton_implementation(_add_norm_triton, _add_norm_triton_refusal),
    "reference": Implementation(_add_norm_reference),
}


def _store_heads_triton() -> Callable[..., Any]:
    from cm3kernels.store_heads.triton import store_heads_triton

    return store_heads_triton


def _store_heads_reference() -> Callable[..., Any]:
    from cm3kernels.store_heads.reference import store_heads_reference

    return store_heads_reference


def _store_heads_triton_refusal(keys: Tensor) -> str | None:
    if keys.shape[2] > LARGEST_HEAD_DIM:
        return (
            f"the head dimension is {keys.shape[2]}, but the kernel supports at most "
            f"{LARGEST_HEAD_DIM}; next: implementation='auto'"
        )
    return _narrow_refusal(keys)


STORE_HEADS = {
    "triton": triton_implementation(_store_heads_triton, _store_heads_triton_refusal),
    "reference": Implementation(_store_heads_reference),
}


def _silu_gate_triton() -> Callable[..., Any]:
    from cm3kernels.silu_gate.triton import silu_gate_triton

    return silu_gate_triton


def _silu_gate_reference() -> Callable[..., Any]:
    from cm3kernels.silu_gate.reference import silu_gate_reference

    return silu_gate_reference


SILU_GATE = {
    "triton": triton_implementation(_silu_gate_triton, _narrow_refusal),
    "reference": Implementation(_silu_gate_reference),
}
