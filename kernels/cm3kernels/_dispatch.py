"""Which implementation of an op runs: chosen by name, refused with a reason, never replaced
silently."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("cm3kernels")
_said: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Args:
        load: returns the function; imports what it needs only then (called every time: a repeated
            import costs nothing).
        refusal: why it can't take these tensors, in words that end with what to do instead; None
            where it can.
        automatic_on: device types for which "auto" may choose it; None: all.
    """

    load: Callable[[], Callable[..., Any]]
    refusal: Callable[[Tensor], str | None] = lambda tensor: None
    automatic_on: tuple[str, ...] | None = None


def choose(
    op: str, implementation: str, available: Mapping[str, Implementation], tensor: Tensor
) -> Callable[..., Any]:
    """The implementation of that name; "auto" is the first of `available` that supports the tensor,
    and logs its choice once (logger "cm3kernels", level info; a warning where a faster one is meant
    for this device and can't run).

    Args:
        op: the op's name, for the message.
        implementation: "auto" or a key of `available`.
        available: fastest first.
        tensor: one of the arguments; its device and dtype decide.

    Raises:
        ValueError: no such implementation, with a list of those available; or it can't run here,
            with the reason.
    """
    if implementation == "auto":
        passed_over: list[str] = []
        for name, candidate in available.items():
            if candidate.automatic_on is None or tensor.device.type in candidate.automatic_on:
                if (reason := candidate.refusal(tensor)) is None:
                    _say(op, name, tensor, passed_over)
                    return candidate.load()
                passed_over.append(f"{name!r} can't: {reason}")
        reasons = "; ".join(
            f"{name}: {candidate.refusal(tensor)}" for name, candidate in available.items()
        )
        raise ValueError(
            f"{op}: no implementation takes this tensor\n  cause: {reasons}\n  next: use another "
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


def interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter (decided by the environment before they
    are imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def triton_refusal(tensor: Tensor) -> str | None:
    """Why a Triton kernel can't take this tensor: no Triton, or no GPU and no interpreter. None
    where it can."""
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


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Context in which Triton launches on the tensor's device; it takes the current one, whatever
    device the tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def triton_implementation(
    load: Callable[[], Callable[..., Any]], refusal: Callable[[Tensor], str | None] = triton_refusal
) -> Implementation:
    """A Triton kernel: "auto" takes it on CUDA tensors; by name it also runs on CPU tensors, in the
    interpreter."""
    return Implementation(load, refusal, automatic_on=("cuda",))


def require(condition: bool, op: str, cause: str | Callable[[], str]) -> None:
    """Raise `ValueError` naming the op when an argument does not fit. Pass a function to build the
    text only then: formatting a dozen messages takes some 15 us, and an op is called in every layer
    of every step."""
    if not condition:
        raise ValueError(f"{op}: {cause if isinstance(cause, str) else cause()}")
