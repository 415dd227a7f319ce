"""What each filter of `Filters` keeps, by its definition. Legend: R ids of the legal slice."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kept_ids(name: str, value: float, scores_R: Tensor) -> Tensor:
    """The ids that one filter keeps, bool [R]; ties and rounding at the threshold are included."""
    slack, legal_R = rounding(scores_R), scores_R > -torch.inf
    if name == "top_k":
        return (
            scores_R
            >= scores_R.sort(descending=True).values[min(int(value), int(legal_R.sum())) - 1]
            - slack
        )
    if name == "min_p":
        return scores_R >= scores_R.max() + math.log(value) - slack
    probability_R, surprise_R = scores_R.softmax(0), -scores_R.log_softmax(0)
    cost_R = surprise_R  # what a set takes first: the most probable, or the most typical
    if name == "typical_p":
        cost_R = (surprise_R - (probability_R * surprise_R.masked_fill(~legal_R, 0.0)).sum()).abs()
    nearer_RR = cost_R[None] < cost_R[:, None] - slack
    return legal_R & ((nearer_RR * probability_R).sum(dim=1) < value + 1e-6)


def rounding(values_R: Tensor) -> float:
    """The maximum rounding error of a float32 sum of such values."""
    return 1e-6 * (1 + float(values_R[values_R > -torch.inf].abs().max()))
