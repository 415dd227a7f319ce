"""The thresholds that `eager.py` filters by, found without sorting a row.

Legend: n requests, m some of them, V ids, M ids considered, b buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: The buckets of a nucleus span this many nats below the largest key; what is further away falls
#: into the last.
BUCKETED_NATS = 32.0


def at_least(values_nM: Tensor, floor_n1: Tensor) -> Tensor:
    """1 where a value is at least the floor, else 0; float64, since multiplying masses costs less
    than selecting them."""
    return torch.ge(
        values_nM,
        floor_n1,
        out=torch.empty(values_nM.shape, dtype=torch.float64, device=values_nM.device),
    )


def higher(first_n1: Tensor | None, second_n1: Tensor) -> Tensor:
    return second_n1 if first_n1 is None else torch.maximum(first_n1, second_n1)


def kth_value(descending_nM: Tensor, ks: Sequence[int], num_ids: int) -> Tensor:
    """The k-th value of each row, [n, 1]; -inf where k is off (<= 0 or >= `num_ids`)."""
    if min(ks) == max(ks):
        return descending_nM[:, ks[0] - 1 : ks[0]]
    place_n1 = torch.tensor(
        [k - 1 if 0 < k < num_ids else -1 for k in ks], device=descending_nM.device
    )[:, None]
    return descending_nM.gather(1, place_n1.clamp(min=0)).masked_fill_(place_n1 < 0, -math.inf)


def largest(values_nV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`values_nV.topk(num)`: values in descending order and their columns, [n, num].

    By groups: the `num` groups with the largest maxima contain the `num` largest values. A k-th of
    the work, in two steps."""
    V = values_nV.shape[1]
    # as many groups as values in the groups that are kept
    size = 2 ** max(round(math.log2(V / num) / 2), 0)
    if size < 4 or V % size:
        best_nM, column_nM = values_nV.topk(num, dim=1)
        return best_nM, column_nM
    num_groups = V // size
    group_nM = (
        values_nV.view(-1, size, num_groups).amax(dim=1).topk(num, dim=1, sorted=False).indices
    )
    first_1s1 = torch.arange(0, V, num_groups, device=values_nV.device)[None, :, None]
    column_nc = (group_nM[:, None, :] + first_1s1).flatten(1)
    best_nM, place_nM = values_nV.gather(1, column_nc).topk(num, dim=1)
    return best_nM, column_nc.gather(1, place_nM)


@dataclass(frozen=True)
class Nucleus:
    """A top-p filter: the ids of largest keys whose mass reaches p of the request's.

    Args:
        key_nM: -inf where there is no mass.
        mass_nM: float64.
        p_n, ps: floating [n], and the same as numbers; >= 1 is off.
    """

    key_nM: Tensor
    mass_nM: Tensor
    p_n: Tensor
    ps: Sequence[float]

    def of(self, index_m: Tensor) -> Nucleus:
        """The filter of some requests."""
        ps = [self.ps[place] for place in index_m.tolist()]
        return Nucleus(self.key_nM[index_m], self.mass_nM[index_m], self.p_n[index_m], ps)

    def outside(self, column_n: Tensor) -> list[int]:
        """Requests whose id is outside: the ids above it have p of the mass already."""
        above_nM = torch.empty_like(self.mass_nM)  # 1 or 0; multiplying costs less than selecting
        torch.gt(self.key_nM, self.key_nM.gather(1, column_n[:, None]), out=above_nM)
        above_n, total_n = above_nM.mul_(self.mass_nM).sum(dim=1), self.mass_nM.sum(dim=1)
        sums = zip(above_n.tolist(), total_n.tolist(), self.ps, strict=True)
        return [
            place
            for place, (above, total, p) in enumerate(sums)
            if p < 1 and above >= p * total and above > 0
        ]

    def heavy(self) -> Tensor:
        """1 for ids that may be inside, else 0: the others are so unlikely that together they have
        less than 1 - p of the mass."""
        # 0.999: rounding
        share_n1 = (
            (1 - self.p_n.double()[:, None]).clamp_(min=0).mul_(0.999 / self.mass_nM.shape[1])
        )
        return at_least(self.mass_nM, self.mass_nM.sum(dim=1, keepdim=True).mul_(share_n1))

    def floor(self, *, descending: bool = False) -> Tensor:
        """Its smallest key, [n, 1]; -inf where p >= 1. `descending`: the keys are sorted."""
        key_nM, mass_nM, p_n1 = self.key_nM, self.mass_nM, self.p_n.double()[:, None]
        if descending:
            sum_nM = mass_nM.cumsum(dim=1)
            last_n1 = (
                (sum_nM < p_n1 * sum_nM[:, -1:])
                .sum(dim=1, keepdim=True)
                .clamp_(max=key_nM.shape[1] - 1)
            )
            floor_n1 = key_nM.gather(1, last_n1)
        elif 2 * sum(p < 1 for p in self.ps) > len(self.ps):
            floor_n1 = _bucketed_floor(key_nM, mass_nM, p_n1)
        else:
            index_m = torch.tensor(
                [place for place, p in enumerate(self.ps) if p < 1], device=key_nM.device
            )
            floor_n1 = torch.empty_like(key_nM[:, :1])
            floor_n1[index_m] = _bucketed_floor(key_nM[index_m], mass_nM[index_m], p_n1[index_m])
        return floor_n1.masked_fill_(p_n1 >= 1, -math.inf)


def _bucketed_floor(key_nM: Tensor, mass_nM: Tensor, p_n1: Tensor) -> Tensor:
    """Smallest key of a nucleus: masses are accumulated in buckets of equal width below the largest
    key, and only the bucket in which the sum reaches p is sorted. Buckets never separate equal
    keys, so the result is exact."""
    n, M = key_nM.shape
    num_buckets = min(max(M // 4, 64), 2048)
    highest_n1 = key_nM.amax(dim=1, keepdim=True)
    width_n1 = (
        (highest_n1 - key_nM.amin(dim=1, keepdim=True))
        .clamp_(1e-30, BUCKETED_NATS)
        .div_(num_buckets)
    )
    bucket_nM = (highest_n1 - key_nM).div_(width_n1).clamp_(max=num_buckets - 1).long()
    sum_nb = torch.zeros(n, num_buckets, dtype=torch.float64, device=key_nM.device).scatter_add_(
        1, bucket_nM, mass_nM
    )
    sum_nb = sum_nb.cumsum_(dim=1)
    # reached in a bucket that has ids, also where p is off
    wanted_n1 = p_n1.clamp(max=1.0) * sum_nb[:, -1:]
    crossing_n1 = (sum_nb < wanted_n1).sum(dim=1, keepdim=True).clamp_(max=num_buckets - 1)
    before_n1 = sum_nb.gather(1, (crossing_n1 - 1).clamp_(min=0)).masked_fill_(
        crossing_n1 == 0, 0.0
    )
    inside_nM = bucket_nM == crossing_n1
    num_inside_n1 = inside_nM.sum(dim=1, keepdim=True)
    inner, place = torch.where(inside_nM, key_nM, -math.inf).topk(int(num_inside_n1.max()), dim=1)
    sum_inner = (
        torch.where(inner > -math.inf, mass_nM.gather(1, place), 0.0).cumsum_(dim=1).add_(before_n1)
    )
    last_n1 = (sum_inner < wanted_n1).sum(dim=1, keepdim=True).minimum(num_inside_n1 - 1)
    return inner.gather(1, last_n1)


def typical_ids(score_nM: Tensor, mass_nM: Tensor, p_n: Tensor, ps: Sequence[float]) -> Tensor:
    """`reference.typical_ids` of the ids that have a mass, in the form of `_at_least`.

    Surprise and entropy have the same normaliser, so their distance is that of a score from the
    mean score."""
    mean_n1 = (mass_nM * score_nM.clamp(min=-1000.0)).sum(dim=1, keepdim=True) / mass_nM.sum(
        dim=1, keepdim=True
    )
    nearness_nM = torch.where(mass_nM > 0, (score_nM - mean_n1).abs_().neg_(), -math.inf)
    return at_least(nearness_nM, Nucleus(nearness_nM, mass_nM, p_n, ps).floor())
