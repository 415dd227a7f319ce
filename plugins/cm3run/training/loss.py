"""The training loss of a batch, and its means by modality.

The decoder's head computes the loss: `Decoder.loss_sums`.

Legend: B rows, T tokens, E model dimension, G groups (modality of the target).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from einops import rearrange
from torch import Tensor

from cm3core.interfaces.decoder import Decoder

if TYPE_CHECKING:
    from cm3run.training.packing import TrainingBatch

#: Groups of the loss sums, as in `TrainingBatch.modality_BT`; group 0 is padding.
GROUPS = ("none", "text", "image", "special")


def batch_loss_sums(
    decoder: Decoder,
    hidden_BTE: Tensor,
    batch: TrainingBatch,
    *,
    z_loss: float = 0.0,
    num_parts: int = 1,
) -> tuple[Tensor, Tensor]:
    """`Decoder.loss_sums` of a batch: the weighted sum in nats, and its parts [G, 2] by modality.

    Args:
        decoder: its head computes the loss.
        hidden_BTE: the batch's hidden states.
        batch: targets, weights and modalities, on the same device.
        z_loss: see `Decoder.loss_sums`.
        num_parts: of the data set: G is four times that, the modalities of one part after the other.
    """
    return decoder.loss_sums(
        rearrange(hidden_BTE, "B T E -> (B T) E"),
        rearrange(batch.targets_BT, "B T -> (B T)"),
        rearrange(batch.weights_BT, "B T -> (B T)"),
        rearrange(batch.modality_BT, "B T -> (B T)"),
        num_groups=len(GROUPS) * num_parts,
        z_loss=z_loss,
    )


def modality_metrics(sums_G2: Tensor) -> dict[str, float]:
    """Mean loss (nats per token) and perplexity by modality, and the overall mean loss.

    Modalities that did not occur are left out; parts of the data set are added up.

    >>> modality_metrics(torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 2.0], [0.0, 0.0]]))["loss"]
    2.0
    """
    sums = sums_G2.cpu().double().reshape(-1, len(GROUPS), 2).sum(0).tolist()  # one copy of a GPU's
    metrics: dict[str, float] = {}
    if (count := sum(row[1] for row in sums)) > 0:
        metrics["loss"] = sum(row[0] for row in sums) / count
    for name, (loss, weight) in zip(GROUPS[1:], sums[1:], strict=True):
        if weight > 0:
            metrics[f"{name}_loss"] = loss / weight
            metrics[f"{name}_perplexity"] = math.exp(min(loss / weight, 700.0))
    return metrics


def part_metrics(sums_G2: Tensor, parts: Sequence[str]) -> dict[str, float]:
    """Mean loss by part of the data set, those that did not occur left out.

    >>> part_metrics(torch.tensor([[0.0, 0.0], [2.0, 2.0], [6.0, 2.0], [0.0, 0.0]]), ["edit"])
    {'part/edit/loss': 2.0}
    """
    sums = sums_G2.cpu().double().reshape(-1, len(GROUPS), 2).sum(1).tolist()
    return {
        f"part/{name}/loss": loss / weight
        for name, (loss, weight) in zip(parts, sums, strict=False)
        if weight > 0
    }
