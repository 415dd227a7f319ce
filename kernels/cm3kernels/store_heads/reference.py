"""Queries, keys and values from one product, and the write to the cache, in plain torch: the definition that the
kernel must match.

Legend: M new tokens, H query heads, K key heads, D head dimension, N slots of the pool, C = (H + 2 K) D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3kernels.store_heads.heads import HeadNorms, Turn


def store_heads_reference(
    qkv_MC: Tensor,
    keys_NKD: Tensor,
    values_NKD: Tensor,
    slots_M: Tensor,
    bias_C: Tensor | None,
    norms: HeadNorms | None,
    turn: Turn | None,
) -> Tensor:
    """See `cm3kernels.store_heads`. Computes in float32 (float64 for float64) and rounds once."""
    K, D = keys_NKD.shape[1:]
    wide = torch.promote_types(qkv_MC.dtype, torch.float32)
    x_MC = qkv_MC.to(wide) if bias_C is None else qkv_MC.to(wide) + bias_C.to(wide)
    heads_MGD = x_MC.unflatten(1, (-1, D))
    turned_MGD, v_MKD = heads_MGD[:, :-K], heads_MGD[:, -K:]
    if norms is not None:
        turned_MGD = _normed(turned_MGD, norms)
    if turn is not None:
        first, second = turned_MGD.chunk(2, dim=-1)
        other_MGD = torch.cat([-second, first], dim=-1)
        turned_MGD = turned_MGD * turn.cosines[:, None] + other_MGD * turn.sines[:, None]
    q_MHD: Tensor = turned_MGD[:, :-K]
    k_MKD = turned_MGD[:, -K:]
    for pool_NKD, new_MKD in ((keys_NKD, k_MKD), (values_NKD, v_MKD)):
        pool_NKD.index_copy_(0, slots_M, new_MKD.to(pool_NKD.dtype))
    return q_MHD.to(keys_NKD.dtype)


def _normed(x_MGD: Tensor, norms: HeadNorms) -> Tensor:
    if norms.centred:
        normed_MGD = F.layer_norm(x_MGD, x_MGD.shape[-1:], eps=norms.eps)
    else:
        normed_MGD = x_MGD * torch.rsqrt(x_MGD.square().mean(-1, keepdim=True) + norms.eps)
    normed_MGD = normed_MGD * norms.weight.to(x_MGD.dtype)
    return normed_MGD if norms.bias is None else normed_MGD + norms.bias.to(x_MGD.dtype)
