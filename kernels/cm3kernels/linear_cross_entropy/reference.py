"""Cross entropy of a linear head, in plain tensor algebra: the definition that every faster
implementation must match.

Legend: N tokens, E model dimension, V ids, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy_reference(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    *,
    num_groups: int,
    z_loss: float,
    **_options: object,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.linear_cross_entropy`. Keeps all logits in memory, in float32 (float64 for float64),
    whatever the products' dtype; the gradient is autograd's."""
    inside = torch.promote_types(hidden_NE.dtype, torch.float32)
    counts_N = weights_N != 0
    # A token with weight 0 is removed before the product: its hidden state may be anything, and 0 * NaN is
    # NaN.
    hidden_NE = torch.where(counts_N[:, None], hidden_NE.to(inside), 0.0)
    with torch.autocast(hidden_NE.device.type, enabled=False):
        logits_NV = hidden_NE @ head_VE.to(inside).T
    log_z_N = torch.logsumexp(logits_NV, dim=1)
    # Not log Z minus the target's logit: if both are huge, their difference is lost.
    nll_N = -torch.log_softmax(logits_NV, dim=1).gather(
        1, targets_N.masked_fill(~counts_N, 0)[:, None]
    )[:, 0]
    weights_N = weights_N.to(inside)
    loss = (weights_N * (nll_N + z_loss * log_z_N.square())).sum()
    return loss, group_sums(nll_N.detach(), weights_N, groups_N, num_groups)


def group_sums(nll_N: Tensor, weights_N: Tensor, groups_N: Tensor, num_groups: int) -> Tensor:
    """Return the sums of weight * nll and of weights per group, [G, 2]; all NaN if a token with nonzero weight has
    a group out of range.

    Uses no scatter-add, so the bits are always the same.

    >>> nll, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 0.5])
    >>> group_sums(nll, weights, torch.tensor([0, 1, 1]), 2).tolist()
    [[1.0, 1.0], [4.0, 1.5]]
    """
    parts_N2 = torch.stack([weights_N * nll_N, weights_N], dim=1)
    member_GN = torch.arange(num_groups, device=groups_N.device)[:, None] == groups_N
    sums_G2 = torch.where(member_GN[..., None], parts_N2, 0.0).sum(dim=1)
    stray = ((weights_N != 0) & ~member_GN.any(dim=0)).any()
    return sums_G2.masked_fill(stray, float("nan"))
