"""The default of `Decoder.loss_sums`: logits are computed in chunks of rows, and again in the backward pass.

Legend: N tokens of a batch, R rows of a chunk, E model dimension, V ids, G groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def chunked_loss_sums(
    logits: Callable[[Tensor], Tensor],
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    size: int,
    own_head: range | None,
    num_groups: int,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """See `Decoder.loss_sums`.

    Args:
        logits: computes logits of hidden states [R, E], for all ids [R, V].
        tensors: hidden states, targets, weights and groups of N tokens.
        size: rows per chunk, 1 or more.
        own_head: see `Decoder.own_head`.
        num_groups, z_loss: see `Decoder.loss_sums`.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk_losses(hidden_RE: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        logits_RV = logits(hidden_RE)
        if own_head is not None:
            ids_V = torch.arange(logits_RV.shape[1], device=targets_R.device)
            of_own_R, of_own_V = (
                (ids >= own_head.start) & (ids < own_head.stop) for ids in (targets_R, ids_V)
            )
            logits_RV = logits_RV.masked_fill(of_own_R[:, None] != of_own_V, -torch.inf)
        logits_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
        log_z_R = logits_RV.logsumexp(1)
        return log_z_R - logits_RV.gather(1, targets_R[:, None]).squeeze(1), log_z_R

    hidden_NE, targets_N, weights_N, groups_N = tensors
    rows = weights_N.nonzero().squeeze(1)
    hidden_NE, targets_N = hidden_NE[rows], targets_N[rows]
    weights_N, groups_N = weights_N[rows], groups_N[rows].long()
    chunks = [
        checkpoint(chunk_losses, hidden_RE, targets_R, use_reentrant=False)
        for hidden_RE, targets_R in zip(hidden_NE.split(size), targets_N.split(size), strict=True)
    ]
    nll_N, log_z_N = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    weights_N = weights_N.to(nll_N.dtype)
    loss = (weights_N * (nll_N + z_loss * log_z_N.square())).sum()
    sums_G2 = nll_N.new_zeros(num_groups, 2)
    sums_G2.index_add_(0, groups_N, torch.stack([nll_N.detach() * weights_N, weights_N], dim=1))
    return loss, sums_G2
