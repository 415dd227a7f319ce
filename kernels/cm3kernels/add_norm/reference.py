"""A residual sum and its norm, in plain torch: the definition that the kernel must match.

Legend: M rows, E width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def add_norm_reference(
    x_ME: Tensor,
    added_ME: Tensor | None,
    weight_E: Tensor | None,
    centred: bool,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.add_norm`."""
    total_ME = x_ME if added_ME is None else (x_ME + added_ME).to(x_ME.dtype)
    wide_ME = total_ME.to(torch.promote_types(x_ME.dtype, torch.float32))
    if centred:
        normed_ME = F.layer_norm(wide_ME, wide_ME.shape[-1:], eps=eps)
    else:
        normed_ME = wide_ME * torch.rsqrt(wide_ME.square().mean(-1, keepdim=True) + eps)
    if weight_E is not None:
        normed_ME = normed_ME * weight_E.to(wide_ME.dtype)
    return total_ME, normed_ME.to(dtype)
