"""A draw over all ids that never sorts them: what `eager.py` does where its first look proves nothing.

Legend: n requests, V ids of the slice, b buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.reference import alpha_threshold, only, race_noise, tempered

#: Buckets of a nucleus: this many to a nat, over 32 nats.
BUCKETS_PER_NAT, NUM_BUCKETS = 64, 2048


@dataclass(frozen=True)
class Settings:
    """The per-request arguments, each [n]; None is off for all."""

    temperature_n: Tensor | None
    top_k_n: Tensor | None
    top_p_n: Tensor | None
    plausible_top_k_n: Tensor | None
    plausible_top_p_n: Tensor | None
    plausible_alpha_n: Tensor | None
    plausible_k_n: Tensor | None
    seed_n: Tensor
    position_n: Tensor

    def of(self, index_m: Tensor) -> Settings:
        """Those of some requests."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {name: None if value is None else value[index_m] for name, value in values.items()}
        return Settings(**some)


def draw_wide(mixed_nV: Tensor, reference_nV: Tensor, of: Settings, guided: bool, first_id: int,
              with_log: bool) -> tuple[Tensor, Tensor | None]:
    """Columns drawn among all ids, int64 [n], and their log-probabilities if asked for.

    Args:
        mixed_nV, reference_nV: float64; -inf where an id is not legal.
        of: the requests' settings.
        guided: whether plausibility filters are looked at.
    """
    V = mixed_nV.shape[1]
    if guided:
        threshold_n1 = torch.maximum(_threshold(reference_nV, of.plausible_top_k_n, of.plausible_top_p_n),
                                     alpha_threshold(reference_nV, of.plausible_alpha_n, of.plausible_k_n))
        mixed_nV = only(reference_nV >= threshold_n1, mixed_nV)
    scores_nV, greedy_n1 = tempered(mixed_nV, of.temperature_n)
    threshold_n1 = _threshold(scores_nV, of.top_k_n, of.top_p_n).masked_fill(greedy_n1, 0.0)
    kept_nV = only(scores_nV >= threshold_n1, scores_nV)
    column_n = race_noise(of.seed_n, of.position_n, first_id, V).mul_(~greedy_n1).add_(kept_nV).argmax(dim=1)
    if not with_log:
        return column_n, None
    return column_n, kept_nV.log_softmax(dim=1).gather(1, column_n[:, None])[:, 0].masked_fill(greedy_n1[:, 0], 0.0)


def _threshold(values_nV: Tensor, k_n: Tensor | None, p_n: Tensor | None) -> Tensor:
    """`reference.top_threshold` by partial selection."""
    V = values_nV.shape[1]
    threshold_n1 = torch.full_like(values_nV[:, :1], -math.inf)
    if k_n is not None and bool((on_n := (k_n > 0) & (k_n < V)).any()):
        k_n1 = (k_n * on_n).clamp(min=1)[:, None]
        largest = values_nV.topk(int(k_n1.max()), dim=1).values
        threshold_n1 = largest.gather(1, k_n1 - 1).masked_fill(~on_n[:, None], -math.inf)
        values_nV = only(values_nV >= threshold_n1, values_nV)
    if p_n is not None and bool((p_n < 1).any()):
        nucleus_n1 = _bucketed_nucleus(values_nV, p_n.double()[:, None]).masked_fill_((p_n >= 1)[:, None], -math.inf)
        threshold_n1 = torch.maximum(threshold_n1, nucleus_n1)
    return threshold_n1


def _bucketed_nucleus(values_nV: Tensor, p_n1: Tensor) -> Tensor:
    """Smallest value [n, 1] of the nucleus. Masses are summed in buckets of equal width below the largest value; only the
    bucket in which the sum reaches p is put in order. Buckets never part equal values, so the result is exact."""
    n, _ = values_nV.shape
    drop_nV = values_nV.amax(dim=1, keepdim=True) - values_nV
    bucket_nV = (drop_nV * BUCKETS_PER_NAT).clamp_(max=NUM_BUCKETS - 1).long()
    mass_nV = drop_nV.neg_().exp_()
    row_n1 = torch.arange(n, device=values_nV.device)[:, None] * NUM_BUCKETS
    mass_nb = torch.bincount((bucket_nV + row_n1).flatten(), weights=mass_nV.flatten(), minlength=n * NUM_BUCKETS)
    mass_nb = mass_nb.view(n, NUM_BUCKETS).cumsum_(dim=1)
    wanted_n1 = p_n1 * mass_nb[:, -1:]
    crossing_n1 = (mass_nb < wanted_n1).sum(dim=1, keepdim=True).clamp_(max=NUM_BUCKETS - 1)
    before_n1 = mass_nb.gather(1, (crossing_n1 - 1).clamp(min=0)).masked_fill_(crossing_n1 == 0, 0.0)
    inside_nV = bucket_nV == crossing_n1
    num_inside_n1 = inside_nV.sum(dim=1, keepdim=True)
    num = max(int(num_inside_n1.max()), 1)
    inner, column = only(inside_nV, values_nV).topk(num, dim=1)
    mass = mass_nV.gather(1, column).masked_fill_(inner == -math.inf, 0.0).cumsum_(dim=1) + before_n1
    last_n1 = (mass < wanted_n1).sum(dim=1, keepdim=True).minimum(num_inside_n1 - 1).clamp_(min=0)
    return inner.gather(1, last_n1)
