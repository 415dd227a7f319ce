"""The training loss: cross entropy from hidden states and the head's weight, in chunks of rows.

All logits of a batch are never in memory at once: 8 rows of 4,096 tokens over a vocabulary of
66,048 ids would be 8.7 GB. Each chunk's gradient is computed while its logits are there, so nothing
is computed twice.

Legend: N tokens of the batch, R tokens of one chunk, E model dimension, V ids, G groups (modality
of the target).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Groups that the sums are kept for, as in `TrainingBatch.modality_BT`; group 0 is padding.
GROUPS = ("none", "text", "image", "special")

#: Most bytes of one chunk's float32 logits.
CHUNK_BYTES = 32 << 20


def cross_entropy_sums(
    hidden_NE: Tensor,
    head_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    groups_N: Tensor,
    *,
    z_loss: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the tokens' losses in nats, and its parts by group.

    Args:
        hidden_NE: hidden states, floating.
        head_VE: the head's weight; logits are hidden @ head.T, computed in autocast's dtype where
            autocast is on.
        targets_N: int64, the id that each hidden state predicts (already shifted by one against the
            inputs).
        weights_N: float32, 0 or more. Tokens of weight 0 cost nothing and have no gradient.
        groups_N: integer, index into `GROUPS` of each target.
        z_loss: adds z_loss * (log Z)^2 to each token's loss, which keeps logits from drifting
            (PaLM, arXiv:2204.02311, section 5).
        chunk_bytes: most bytes of float32 logits at once.

    Returns:
        The scalar sum of weight * (nll + z loss), differentiable with respect to hidden states and
        head; and float32 [G, 2]: sum of weight * nll (without the z loss) and sum of weights of
        each group.
    """
    rows = weights_N.nonzero().squeeze(1)
    if len(rows) < len(weights_N):
        hidden_NE, targets_N, weights_N, groups_N = (
            hidden_NE[rows],
            targets_N[rows],
            weights_N[rows],
            groups_N[rows],
        )
    with_gradient = torch.is_grad_enabled() and (hidden_NE.requires_grad or head_VE.requires_grad)
    loss, nll_N = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]  # missing in torch's annotations
        hidden_NE, head_VE, targets_N, weights_N.float(), z_loss, chunk_bytes, with_gradient
    )
    sums_G2 = torch.zeros(len(GROUPS), 2, device=nll_N.device)
    sums_G2.index_add_(
        0, groups_N.long(), torch.stack([nll_N * weights_N, weights_N.float()], dim=1)
    )
    return loss, sums_G2


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Forward computes the gradient too (for an upstream gradient of 1); backward scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NE: Tensor,
        head_VE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        z_loss: float,
        chunk_bytes: int,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_NE.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden_NE.dtype
        with torch.autocast(device, enabled=False):
            head = head_VE.to(dtype)
            chunk = max(1, chunk_bytes // (4 * head.shape[0]))
            nll_N = torch.empty(len(targets_N), device=hidden_NE.device)
            loss = torch.zeros((), device=hidden_NE.device)
            grad_hidden = torch.empty_like(hidden_NE) if with_gradient else None
            grad_head = torch.zeros_like(head_VE, dtype=torch.float32) if with_gradient else None
            for start in range(0, len(targets_N), chunk):
                part = slice(start, start + chunk)
                hidden_RE, weights_R = hidden_NE[part].to(dtype), weights_N[part]
                scores_RV, nll_R, log_z_R, total_R = _chunk_losses(
                    (hidden_RE @ head.T).float(), targets_N[part]
                )
                nll_N[part] = nll_R
                loss += (weights_R * (nll_R + z_loss * log_z_R.square())).sum()
                if grad_hidden is None or grad_head is None:
                    continue
                # d nll = p - onehot; d (log Z)^2 = 2 log Z p; p = scores / total
                scores_RV *= (weights_R * (1 + 2 * z_loss * log_z_R) / total_R).unsqueeze(1)
                scores_RV.scatter_add_(1, targets_N[part].unsqueeze(1), -weights_R.unsqueeze(1))
                grad_RV = scores_RV.to(dtype)
                grad_hidden[part] = grad_RV @ head
                if dtype == torch.float32:
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
        return grad_hidden * grad_loss, grad_head * grad_loss, None, None, None, None, None


def _chunk_losses(logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(logits - max), overwriting the logits; each row's loss, log Z, and sum of the first. One
    exponential an entry."""
    largest_R = logits_RV.amax(dim=1)
    logits_RV -= largest_R.unsqueeze(1)
    target_R = logits_RV.gather(1, targets_R.unsqueeze(1)).squeeze(1)
    total_R = logits_RV.exp_().sum(dim=1)
    log_total_R = total_R.log()
    return logits_RV, log_total_R - target_R, log_total_R + largest_R, total_R


def modality_metrics(sums_G2: Tensor) -> dict[str, float]:
    """Mean loss (nats a token) and perplexity by modality, and over all of them; modalities that
    did not occur are left out.

    >>> modality_metrics(torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 2.0], [0.0, 0.0]]))["loss"]
    2.0
    """
    sums = sums_G2.double().tolist()
    metrics: dict[str, float] = {}
    if (count := sum(row[1] for row in sums)) > 0:
        metrics["loss"] = sum(row[0] for row in sums) / count
    for name, (loss, weight) in zip(GROUPS[1:], sums[1:], strict=True):
        if weight > 0:
            metrics[f"{name}_loss"] = loss / weight
            metrics[f"{name}_perplexity"] = math.exp(min(loss / weight, 700.0))
    return metrics
