"""Host side of every op: argument checks, the device to launch on, Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def require(condition: bool, op: str, cause: str | Callable[[], str]) -> None:
    """Raise `ValueError` naming the op if an argument is invalid. Pass a function to format the text only on
    failure: formatting a dozen messages takes about 15 us, and an op is called in every layer of every
    step."""
    if not condition:
        raise ValueError(f"{op}: {cause if isinstance(cause, str) else cause()}")


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Context in which Triton launches on the tensor's device; otherwise it uses the current device, whatever
    the tensors' device."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def interprets() -> bool:
    """Whether Triton kernels run in Triton's interpreter (set by the environment before they are
    imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
