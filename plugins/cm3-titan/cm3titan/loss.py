"""Our loss in torchtitan: each token's cross entropy times its weight, divided by the weights of a whole step.

torchtitan moves and cuts one tensor of labels, and divides by the number of labels. So a label has its target's id in the
low 32 bits and the bits of its float32 weight in the high ones, and the loss divides by `step_weight`, which the trainer
sums over the step.

Legend: B rows, T tokens, N tokens of a batch, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss, _LossParallelCrossEntropy
from torchtitan.config import CompileConfig

_LOW = 0xFFFFFFFF


def packed_labels(targets_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Targets (int64, below 2**31) and weights (float32) as one int64 tensor; `IGNORE_INDEX` where a weight is 0.

    >>> packed_labels(torch.tensor([[7, 7]]), torch.tensor([[1.0, 0.0]])).tolist()
    [[4575657221408423943, -100]]
    """
    bits_BT = weights_BT.contiguous().view(torch.int32).long() << 32
    return torch.where(weights_BT == 0, IGNORE_INDEX, bits_BT | targets_BT)


def unpacked_labels(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The targets, 0 where the weight is 0, and the weights."""
    counts_BT = labels_BT != IGNORE_INDEX
    weights_BT = (labels_BT >> 32).int().view(torch.float32)
    return torch.where(counts_BT, labels_BT & _LOW, 0), torch.where(counts_BT, weights_BT, 0.0)


def label_weight(labels_BT: Tensor) -> Tensor:
    """The sum of the weights, float64 []."""
    return unpacked_labels(labels_BT)[1].double().sum()


class WeightedCrossEntropy(BaseLoss):
    """Sum of weight * (cross entropy + z_loss * (log Z)^2), divided by the step's weight."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        """`z_loss`: as `train.z_loss`; only with whole rows of logits."""

        vocab_size: int
        z_loss: float = 0.0

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.vocab_size, self.z_loss = config.vocab_size, config.z_loss
        #: Sum of the weights of the step in all processes, float32 []; the trainer sets it.
        self.step_weight: Tensor | None = None
        self.fn = self._sum
        self._maybe_compile(compile_config)

    def __call__(
        self,
        pred: Tensor,
        labels: Tensor,
        global_valid_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`pred`: logits [B, T, V], or this process's ids of them. `global_valid_tokens` is not used."""
        assert self.step_weight is not None
        return self.fn(pred, labels) / self.step_weight.clamp(min=1e-9), {}

    def _sum(self, logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
        targets_BT, weights_BT = unpacked_labels(labels_BT)
        targets_N = targets_BT.flatten()
        if isinstance(logits_BTV, DTensor):  # each process has some of the ids
            logits_NV = logits_BTV.to_local().flatten(0, 1).float()
            group = logits_BTV.device_mesh.get_group("tp")
            nll_N = _LossParallelCrossEntropy.apply(
                logits_NV, targets_N, group, self.vocab_size, "none"
            )
        else:
            logits_NV = logits_BTV.flatten(0, 1).float()
            nll_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
            if self.z_loss:
                z_N = self.z_loss * torch.logsumexp(logits_NV, 1).square()
                nll_N = nll_N + (z_N - z_N.detach())  # in the gradient, not in the reported loss
        total: Tensor = (nll_N * weights_BT.flatten()).sum()
        return total
