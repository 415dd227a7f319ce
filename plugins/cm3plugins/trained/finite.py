"""Weights must be finite numbers: trainers refuse to write others, and nothing reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cm3core.errors import CheckpointError, CM3Error


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CheckpointError` that names the first tensor with NaN or infinity in it."""
    name = first_not_finite(tensors)
    if name is not None:
        raise CheckpointError(
            str(path),
            f"{name} holds NaN or infinite numbers",
            "use weights of a run that did not diverge",
        )


def check_before_saving(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CM3Error` where a training has diverged, so that weights written before stay."""
    name = first_not_finite(tensors)
    if name is not None:
        raise CM3Error(
            str(path),
            f"the training has diverged: {name} holds NaN or infinite numbers; it is not saved",
            "lower the learning rate, and start in another folder",
        )
