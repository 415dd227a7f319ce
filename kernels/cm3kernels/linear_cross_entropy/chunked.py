"""Cross entropy of a linear head in chunks of rows, in PyTorch's own operations: for CPUs.

The gradient of a chunk is computed while its logits are in memory, so nothing is computed twice; the logits'
memory is reused for the exponentials and then for the gradient. Tokens with weight 0 are dropped first (which
waits for the device; in a compiled graph they are zeroed instead).

Legend: N tokens, R tokens per chunk, E model dimension, V ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cm3kernels.linear_cross_entropy.reference import group_sums

#: Default maximum bytes of a chunk's logits.
CHUNK_BYTES = 32 << 20
#: This many are enough for a chunk of this many rows: they stay in a cache, and glibc returns memory of more than
#: 32 MiB to the system each time. A chunk of fewer rows is slower, since it reads the head for each.
_CACHED_BYTES, _ENOUGH_ROWS = 8 << 20, 384


def linear_cross_entropy_chunked(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    *,
    num_groups: int,
    z_loss: float,
    dtype: torch.dtype,
    chunk_bytes: int | None,
) -> tuple[Tensor, Tensor]:
    """See `cm3kernels.linear_cross_entropy`."""
    if torch.compiler.is_compiling():  # dropping a data-dependent number would break the graph
        counts_N = weights_N != 0
        hidden_NE, targets_N = (
            torch.where(counts_N[:, None], hidden_NE, 0.0),
            targets_N.masked_fill(~counts_N, 0),
        )
    elif len(rows := weights_N.nonzero().squeeze(1)) < len(weights_N):
        hidden_NE, targets_N, weights_N, groups_N = (
            hidden_NE[rows],
            targets_N[rows],
            weights_N[rows],
            groups_N[rows],
        )
    with_gradient = torch.is_grad_enabled() and (hidden_NE.requires_grad or head_VE.requires_grad)
    weights_N = weights_N.to(torch.promote_types(dtype, torch.float32))
    if chunk_bytes is None:
        enough = _ENOUGH_ROWS * weights_N.dtype.itemsize * head_VE.shape[0]
        chunk_bytes = min(CHUNK_BYTES, max(_CACHED_BYTES, enough))
    # torch's annotations lack `apply`
    loss, nll_N = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_NE, head_VE, targets_N, weights_N, z_loss, dtype, chunk_bytes, with_gradient
    )
    return loss, group_sums(nll_N, weights_N, groups_N, num_groups)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The forward also computes the gradient (for an upstream gradient of 1); the backward only scales
    it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        head_VE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        chunk_bytes: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        inside = weights_N.dtype  # float32, float64 for float64
        with torch.autocast(hidden_NE.device.type, enabled=False):
            head_VE_ = head_VE.to(dtype)
            chunk = max(1, chunk_bytes // (inside.itemsize * head_VE.shape[0]))
            nll_N, loss = torch.empty_like(weights_N), weights_N.new_zeros(())
            grad_hidden = torch.empty_like(hidden_NE) if with_gradient else None
            grad_head = torch.zeros_like(head_VE, dtype=inside) if with_gradient else None
            for start in range(0, len(targets_N), chunk):
                part = slice(start, start + chunk)
                hidden_RE, weights_R = hidden_NE[part].to(dtype), weights_N[part]
                scores_RV, nll_N[part], log_z_R, total_R = _chunk_losses(
                    (hidden_RE @ head_VE_.T).to(inside), targets_N[part]
                )
                loss += (weights_R * (nll_N[part] + z_loss * log_z_R.square())).sum()
                if grad_hidden is not None and grad_head is not None:
                    # d nll = p - onehot; d (log Z)^2 = 2 log Z p; p = scores / total
                    scores_RV *= (weights_R * (1 + 2 * z_loss * log_z_R) / total_R).unsqueeze(1)
                    scores_RV.scatter_add_(1, targets_N[part].unsqueeze(1), -weights_R.unsqueeze(1))
                    grad_RV = scores_RV.to(dtype)
                    grad_hidden[part] = grad_RV @ head_VE_
                    if dtype == inside:
                        grad_head.addmm_(grad_RV.T, hidden_RE)
                    else:
                        grad_head += grad_RV.T @ hidden_RE
        if grad_hidden is not None and grad_head is not None:
            ctx.save_for_backward(grad_hidden, grad_head.to(head_VE.dtype))
        ctx.mark_non_differentiable(nll_N)
        return loss, nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad_loss, grad_head * grad_loss, None, None, None, None, None, None


def _chunk_losses(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return exp(logits - max), overwriting the logits; each row's loss, log Z, and sum of the exponentials. Uses
    one exponential per entry."""
    largest_R = logits_RV.amax(dim=1)
    logits_RV -= largest_R.unsqueeze(1)
    target_R = logits_RV.gather(1, targets_R.unsqueeze(1)).squeeze(1)
    total_R = logits_RV.exp_().sum(dim=1)
    log_total_R = total_R.log()
    return logits_RV, log_total_R - target_R, log_total_R + largest_R, total_R
