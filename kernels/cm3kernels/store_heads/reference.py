"""Queries, keys and values from one product, and the write to the cache, in plain torch: the definition that the
kernel must match.

Legend: M new tokens, H query heads, K key heads, D head dimension, N slots of the pool.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def store_heads_reference(
    qkv_MC: Tensor,
    keys_NKD: Tensor,
    values_NKD: Tensor,
    slots_M: Tensor,
    norms_2D: Tensor | None,
    eps: float,
) -> Tensor:
    """See `cm3kernels.store_heads`."""
    K, D = keys_NKD.shape[1:]
    heads_MHD = qkv_MC.unflatten(1, (-1, D))
    q_MHD: Tensor
    q_MHD, k_MKD, v_MKD = heads_MHD.split([heads_MHD.shape[1] - 2 * K, K, K], dim=1)
    if norms_2D is not None:
        q_MHD, k_MKD = _normed(q_MHD, norms_2D[0], eps), _normed(k_MKD, norms_2D[1], eps)
    for pool_NKD, new_MKD in ((keys_NKD, k_MKD), (values_NKD, v_MKD)):
        pool_NKD.index_copy_(0, slots_M, new_MKD.to(pool_NKD.dtype))
    return q_MHD.to(keys_NKD.dtype)


def _normed(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    normed: Tensor = F.layer_norm(x.to(wide), x.shape[-1:], weight_D.to(wide), eps=eps)
    return normed.to(x.dtype)
