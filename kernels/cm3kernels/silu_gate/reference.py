"""The gate of a feed-forward branch, in plain torch: the definition that the kernel must match."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def silu_gate_reference(gate_up: Tensor) -> Tensor:
    """See `cm3kernels.silu_gate`. Computes in float32 (float64 for float64) and rounds once."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)
