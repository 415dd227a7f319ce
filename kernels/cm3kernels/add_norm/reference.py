"""A residual sum and its layer norm, in plain torch: the definition that the kernel must match.

Legend: M rows, E width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm_reference(
    x_ME: Tensor, added_ME: Tensor | None, dtype: torch.dtype, eps: float
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.add_norm`."""
    total_ME = x_ME if added_ME is None else (x_ME + added_ME).to(x_ME.dtype)
    return total_ME, F.layer_norm(total_ME, total_ME.shape[-1:], eps=eps).to(dtype)
