"""Draws the same tokens as `reference.py` with fewer operations: the fast path without a GPU.

No row is sorted. Top-k selects its ids by groups. The threshold of a nucleus is not computed if most draws fall
inside: the race runs without it, and the winner is inside if the ids above it have less than p of the mass; otherwise,
and if the threshold itself is needed, masses are accumulated in buckets. The race is decided by products, the arg max of
log(1 - u) / mass: one logarithm per id and, if few ids are left, only for those. For one request with few ids a call
costs more than its arithmetic: settings are read as Python numbers, and disabled ones are
skipped.
Legend: n requests, m some of them, V ids of the slice, M ids considered (all, or each request's
largest in descending order), L kept ids of all requests together, a positions ahead, b buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.cfg import legal_ids, mix, only, reference_logits, write_rows
from cm3kernels.guided_sample.philox import log_survival, log_survival_of, philox4x32

#: Number of ids of all requests processed at a time. More would not fit in the cache, and their arrays would be newly
#: allocated by the system each time, which costs more than the arithmetic.
AT_ONCE = 32768
#: From this p on, only the race's winner is checked against a nucleus.
LEFT_TO_THE_WINNER = 0.8
#: Number of runners-up that may be tried instead.
NUM_RUNNERS_UP = 3
#: Below this score, float64 does not represent a mass at full precision.
LOWEST_SCORE = -1e300


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
    min_p_n: Tensor | None
    typical_p_n: Tensor | None
    seed_n: Tensor
    position_n: Tensor

    def of(self, index_m: Tensor) -> Settings:
        """Return the settings of some requests."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {
            name: None if value is None else value[index_m] for name, value in values.items()
        }
        return Settings(**some)


def guided_sample_eager(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    first_id: int,
    out_tokens_S: Tensor | None,
    debug: bool,
    **given: Any,
) -> Tensor:
    """See `cm3kernels.guided_sample`; everything is checked, regardless of `debug`."""
    n, V = len(stream_rows_nG), logits_SV.shape[1]
    narrow = any(
        all(0 < k <= V // 8 for k in _numbers(given[name]) or [0])
        for name in ("top_k_n", "plausible_top_k_n")
    )
    narrow = narrow or all(alpha > 0 for alpha in _numbers(given["plausible_alpha_n"]) or [0])
    # narrow: most of the work is on far fewer ids
    step = max(AT_ONCE * (4 if narrow else 1) // V, 1)
    # operations cost less in inference mode; the sum below makes an ordinary tensor
    with torch.inference_mode():
        if n <= step:
            column_n = _some(
                logits_SV, stream_rows_nG, weights_nG, first_id=first_id, first_request=0, **given
            )
        else:
            column_n = torch.empty(n, dtype=torch.int64, device=logits_SV.device)
            for start in range(0, n, step):
                part = slice(start, start + step)
                of_part = {
                    name: None if value is None else value[part] for name, value in given.items()
                }
                column_n[part] = _some(
                    logits_SV,
                    stream_rows_nG[part],
                    weights_nG[part],
                    first_id=first_id,
                    first_request=start,
                    **of_part,
                )
    token_n = column_n + first_id
    if out_tokens_S is not None:
        write_rows(token_n, stream_rows_nG, out_tokens_S)
    return token_n


def _some(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    reference_n: Tensor | None,
    allowed_nV: Tensor | None,
    allowed_bits_nW: Tensor | None,
    allowed_from_n: Tensor | None,
    allowed_to_n: Tensor | None,
    first_id: int,
    first_request: int,
    out_log_probability_n: Tensor | None,
    **settings: Any,
) -> Tensor:
    """Return the columns drawn for requests from `first_request` on, int64 [n]."""
    of, n, V = Settings(**settings), len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(
        n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n
    )
    mixed_nV, legal_nV = mix(
        logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV, first_request
    )
    reference_nV = None
    if (
        of.plausible_top_k_n is not None
        or of.plausible_top_p_n is not None
        or of.plausible_alpha_n is not None
    ):
        reference_nV = reference_logits(logits_SV, stream_rows_nG, reference_n, legal_nV)
        if reference_nV.dtype != torch.float64:
            reference_nV = reference_nV.float()
    column_n, log_n = _draw(
        mixed_nV,
        reference_nV,
        of,
        first_id,
        look=out_log_probability_n is None,
        with_log=out_log_probability_n is not None,
    )
    if out_log_probability_n is not None and log_n is not None:
        out_log_probability_n.copy_(log_n)
    return column_n


def _draw(
    mixed_nV: Tensor,
    reference_nV: Tensor | None,
    of: Settings,
    first_id: int,
    *,
    look: bool,
    with_log: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the columns drawn, int64 [n], and their log-probabilities if requested, float64 [n].

    Args:
        mixed_nV, reference_nV: logits, -inf for illegal ids. Without a reference there is no plausibility
            filter.
        of: settings.
        first_id: id of column 0.
        look: whether a nucleus may be checked only for the winner. Then there is no
            log-probability.
        with_log: whether log-probabilities are requested.
    """
    V, greedy, nucleus = (
        mixed_nV.shape[1],
        [value <= 0 for value in _numbers(of.temperature_n)],
        None,
    )
    if len(set(greedy)) == 2:
        return _draw_apart(
            mixed_nV, reference_nV, of, first_id, greedy, look=look, with_log=with_log
        )
    mixed_nM, column_nM = mixed_nV, None
    if reference_nV is not None:
        others = (of.top_k_n, of.top_p_n, of.min_p_n, of.typical_p_n)
        last = not any(greedy) and all(value_n is None for value_n in others)
        floor_n1, nucleus = _plausible_floor(reference_nV, of, look=look and last)
        if floor_n1 is not None:
            mixed_nM, column_nM = _plausible_ids(
                mixed_nV, reference_nV, floor_n1, narrow=nucleus is None
            )
    if any(greedy):
        column_n = mixed_nM.argmax(dim=1)
        if column_nM is not None:
            column_n = torch.where(
                mixed_nM == mixed_nM.amax(dim=1, keepdim=True), column_nM, V
            ).amin(dim=1)
        return column_n, torch.zeros(
            len(column_n), dtype=torch.float64, device=column_n.device
        ) if with_log else None
    kept, nucleus = _filter(mixed_nM, column_nM, of, nucleus, look=look)
    column_n, score_nV = race(kept, V, first_id, of.seed_n, of.position_n)
    outside = [] if nucleus is None else nucleus.outside(column_n)
    if nucleus is not None and score_nV is not None:
        outside = _runners_up(nucleus, score_nV, column_n, outside)
    if outside:
        index_m = torch.tensor(outside, device=column_n.device)
        reference_mV = None if reference_nV is None else reference_nV[index_m]
        column_n[index_m], _ = _draw(
            mixed_nV[index_m], reference_mV, of.of(index_m), first_id, look=False, with_log=False
        )
    return column_n, kept.log_probability(column_n) if with_log else None


def _runners_up(
    nucleus: Nucleus, score_nV: Tensor, column_n: Tensor, outside: list[int]
) -> list[int]:
    """Replace winners outside the nucleus by the next in the race, repeatedly; return the requests whose winner is
    still outside."""
    for _ in range(NUM_RUNNERS_UP):
        if not outside:
            break
        index_m = torch.tensor(outside, device=column_n.device)
        score_nV[index_m, column_n[index_m]] = -math.inf
        score_mV = score_nV[index_m]
        column_m = score_mV.argmax(dim=1)
        if bool((score_mV.gather(1, column_m[:, None]) < LOWEST_SCORE).any()):
            break
        column_n[index_m] = column_m
        outside = [outside[place] for place in nucleus.of(index_m).outside(column_m)]
    return outside


def _draw_apart(
    mixed_nV: Tensor,
    reference_nV: Tensor | None,
    of: Settings,
    first_id: int,
    greedy: Sequence[bool],
    *,
    look: bool,
    with_log: bool,
) -> tuple[Tensor, Tensor | None]:
    """Same as `_draw`, with the greedy requests handled separately."""
    column_n, log_n = (
        torch.empty_like(of.seed_n),
        torch.empty_like(of.seed_n, dtype=torch.float64) if with_log else None,
    )
    for part in (True, False):
        index_m = torch.tensor(
            [place for place, one in enumerate(greedy) if one == part], device=column_n.device
        )
        reference_mV = None if reference_nV is None else reference_nV[index_m]
        column_n[index_m], log_m = _draw(
            mixed_nV[index_m], reference_mV, of.of(index_m), first_id, look=look, with_log=with_log
        )
        if log_n is not None and log_m is not None:
            log_n[index_m] = log_m
    return column_n, log_n


def _numbers(values_n: Tensor | None) -> list[Any]:
    return [] if values_n is None else values_n.tolist()


def _plausible_floor(
    reference_nV: Tensor, of: Settings, *, look: bool
) -> tuple[Tensor | None, Nucleus | None]:
    """Return the smallest plausible logit of the reference stream, [n, 1] (None: all are plausible), and the nucleus
    that it does not include."""
    V, floor_n1, nucleus = reference_nV.shape[1], None, None
    ks, ps = _numbers(of.plausible_top_k_n), _numbers(of.plausible_top_p_n)
    if any(0 < k < V for k in ks):
        floor_n1 = kth_value(largest(reference_nV, max(k for k in ks if k < V))[0], ks, V)
    if of.plausible_top_p_n is not None and any(p < 1 for p in ps):
        mass_nV = reference_nV.to(torch.float64, copy=True)
        mass_nV.sub_(mass_nV.amax(dim=1, keepdim=True)).exp_()
        if floor_n1 is not None:
            mass_nV.mul_(at_least(reference_nV, floor_n1))
        nucleus = Nucleus(reference_nV, mass_nV, of.plausible_top_p_n, ps)
        if not look or min(ps) < LEFT_TO_THE_WINNER:
            floor_n1, nucleus = higher(floor_n1, nucleus.floor()), None
    if of.plausible_alpha_n is not None and any(
        alpha > 0 for alpha in _numbers(of.plausible_alpha_n)
    ):
        ks = [min(max(k, 1), V) for k in _numbers(of.plausible_k_n) or [1]]
        largest_nM = largest(reference_nV, max(ks))[0].double()
        kth_n1 = largest_nM[:, :1]
        if max(ks) > 1:  # above the number of legal ids: the smallest of them
            k_n1 = torch.tensor(ks, device=kth_n1.device)[:, None].minimum(
                (largest_nM > -math.inf).sum(dim=1, keepdim=True)
            )
            kth_n1 = largest_nM.gather(1, k_n1 - 1)
        log_alpha_n1 = of.plausible_alpha_n.double()[:, None].clamp(min=0).log_()
        floor_n1 = higher(floor_n1, (kth_n1 + log_alpha_n1).minimum(largest_nM[:, :1]))
    return floor_n1, nucleus


def _plausible_ids(
    mixed_nV: Tensor, reference_nV: Tensor, floor_n1: Tensor, *, narrow: bool
) -> tuple[Tensor, Tensor | None]:
    """Return mixed logits, -inf where the reference's is below the floor; and only the considered columns, if these
    are few."""
    V, keep_nV = mixed_nV.shape[1], reference_nV >= floor_n1
    if narrow and mixed_nV.numel() > SMALL and 8 * (num := int(keep_nV.sum(dim=1).max())) <= V:
        reference_nM, column_nM = largest(reference_nV, num)
        return torch.where(
            reference_nM >= floor_n1, mixed_nV.gather(1, column_nM), -math.inf
        ), column_nM
    return only(keep_nV, mixed_nV), None


def _filter(
    mixed_nM: Tensor, column_nM: Tensor | None, of: Settings, nucleus: Nucleus | None, *, look: bool
) -> tuple[Kept, Nucleus | None]:
    """Apply temperature (above 0), top-k, top-p, min-p and typical ids. Skips a nucleus, the given one or top-p's,
    if `look` allows it."""
    M, floor_n1, descending = mixed_nM.shape[1], None, False
    ks, ps, typical_ps = _numbers(of.top_k_n), _numbers(of.top_p_n), _numbers(of.typical_p_n)
    if any(0 < k < M for k in ks):
        most, narrow = (
            max(k for k in ks if k < M),
            all(0 < k < M for k in ks) and mixed_nM.numel() > SMALL,
        )
        # including ties beyond the k-th
        best_nM, place_nM = largest(mixed_nM, min(most + most // 8 + 8, M) if narrow else most)
        floor_n1, last_n1 = kth_value(best_nM, ks, M).double(), best_nM[:, -1:]
        descending = narrow and bool(((last_n1 < floor_n1) | (last_n1 == -math.inf)).all())
        if descending:
            mixed_nM, column_nM = (
                best_nM,
                place_nM if column_nM is None else column_nM.gather(1, place_nM),
            )
    score_nM = mixed_nM.double()  # mixed logits are float32: this is a copy
    highest_n1 = score_nM.amax(dim=1, keepdim=True)
    score_nM.sub_(highest_n1)
    floor_n1 = None if floor_n1 is None else floor_n1 - highest_n1
    if of.temperature_n is not None:
        temperature_n1 = of.temperature_n.double()[:, None]
        score_nM.div_(temperature_n1)
        floor_n1 = None if floor_n1 is None else floor_n1.div_(temperature_n1)
    mass_nM = score_nM.exp()
    if of.top_p_n is not None and any(p < 1 for p in ps):
        if floor_n1 is not None:
            mass_nM.mul_(at_least(score_nM, floor_n1))
        top = Nucleus(score_nM, mass_nM, of.top_p_n, ps)
        if look and column_nM is None and of.typical_p_n is None and min(ps) >= LEFT_TO_THE_WINNER:
            nucleus = top
        else:
            floor_n1 = higher(floor_n1, top.floor(descending=descending))
    if of.min_p_n is not None:
        floor_n1 = higher(floor_n1, of.min_p_n.double()[:, None].log())
    keep_nM = None if floor_n1 is None else at_least(score_nM, floor_n1)
    if of.typical_p_n is not None and any(p < 1 for p in typical_ps):
        mass_nM = mass_nM if keep_nM is None else mass_nM.mul_(keep_nM)
        typical_nM = typical_ids(score_nM, mass_nM, of.typical_p_n, typical_ps)
        keep_nM = typical_nM if keep_nM is None else keep_nM.mul_(typical_nM)
    if descending and keep_nM is not None and of.typical_p_n is None:  # the kept ones come first
        num = int(keep_nM.sum(dim=1).max())
        score_nM, mass_nM, keep_nM = score_nM[:, :num], mass_nM[:, :num], keep_nM[:, :num]
        column_nM = None if column_nM is None else column_nM[:, :num]
    # a nucleus may still need the masses
    raced_nM = mass_nM if keep_nM is None else mass_nM * keep_nM
    num_kept = None if keep_nM is None or column_nM is not None else int(keep_nM.sum())
    if nucleus is not None and raced_nM.numel() > SMALL:
        heavy_nM = nucleus.heavy()
        heavier_nM = raced_nM * heavy_nM
        # otherwise guidance is so strong that only unlikely ids have a mass
        if bool((heavier_nM.amax(dim=1) > 0).all()):
            raced_nM, num_kept = heavier_nM, int(heavy_nM.sum())
    return Kept(score_nM, raced_nM, num_kept, column_nM), nucleus


# Thresholds, found without sorting a row.

#: The buckets of a nucleus span this many nats below the largest key; keys further away fall in the
#: last one.
BUCKETED_NATS = 32.0


def at_least(values_nM: Tensor, floor_n1: Tensor) -> Tensor:
    """Return 1 where a value is at least the floor, else 0; float64, since multiplying masses costs less than
    selecting them."""
    return torch.ge(
        values_nM,
        floor_n1,
        out=torch.empty(values_nM.shape, dtype=torch.float64, device=values_nM.device),
    )


def higher(first_n1: Tensor | None, second_n1: Tensor) -> Tensor:
    return second_n1 if first_n1 is None else torch.maximum(first_n1, second_n1)


def kth_value(descending_nM: Tensor, ks: Sequence[int], num_ids: int) -> Tensor:
    """Return the k-th value of each row, [n, 1]; -inf where k is off (<= 0 or >= `num_ids`)."""
    if min(ks) == max(ks):
        return descending_nM[:, ks[0] - 1 : ks[0]]
    place_n1 = torch.tensor(
        [k - 1 if 0 < k < num_ids else -1 for k in ks], device=descending_nM.device
    )[:, None]
    return descending_nM.gather(1, place_n1.clamp(min=0)).masked_fill_(place_n1 < 0, -math.inf)


def largest(values_nV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return `values_nV.topk(num)`: values in descending order and their columns, [n, num].

    Works by groups: the `num` groups with the largest maxima contain the `num` largest values. This takes
    a fraction of the work, in two steps."""
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
    """A top-p filter: the ids with the largest keys whose mass reaches p of the request's.

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
        """Return the filter of some requests."""
        ps = [self.ps[place] for place in index_m.tolist()]
        return Nucleus(self.key_nM[index_m], self.mass_nM[index_m], self.p_n[index_m], ps)

    def outside(self, column_n: Tensor) -> list[int]:
        """Return requests whose id is outside: the ids above it already have p of the mass."""
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
        """Return 1 for ids that may be inside, else 0: the others are so unlikely that together they have less than
        1 - p of the mass."""
        # 0.999 allows for rounding
        share_n1 = (
            (1 - self.p_n.double()[:, None]).clamp_(min=0).mul_(0.999 / self.mass_nM.shape[1])
        )
        return at_least(self.mass_nM, self.mass_nM.sum(dim=1, keepdim=True).mul_(share_n1))

    def floor(self, *, descending: bool = False) -> Tensor:
        """Return its smallest key, [n, 1]; -inf where p >= 1. `descending`: the keys are sorted."""
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
    """Return the smallest key of a nucleus: masses are accumulated in buckets of equal width below the largest key,
    and only the bucket in which the sum reaches p is sorted. Buckets never separate equal keys, so the result is
    exact."""
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
    """Return `reference.typical_ids` of the ids that have a mass, in the form of `_at_least`.

    Surprise and entropy have the same normaliser, so their distance equals a score's distance from the mean
    score."""
    mean_n1 = (mass_nM * score_nM.clamp(min=-1000.0)).sum(dim=1, keepdim=True) / mass_nM.sum(
        dim=1, keepdim=True
    )
    nearness_nM = torch.where(mass_nM > 0, (score_nM - mean_n1).abs_().neg_(), -math.inf)
    return at_least(nearness_nM, Nucleus(nearness_nM, mass_nM, p_n, ps).floor())


# The race that decides a draw.

#: Up to this many ids of all requests, a race of all costs less than selecting those that take
#: part.
SMALL = 8192
#: Number of positions whose random numbers are then generated at once.
AHEAD = 16


@dataclass(frozen=True)
class Kept:
    """The ids kept by the filters, among M ids of each request.

    Args:
        score_nM: float64; (x - largest x) / temperature.
        mass_nM: float64; exp of the score, 0 where an id is not kept.
        num_kept: upper bound for all requests together; None: not counted.
        column_nM: columns of the M ids among the V; None: M is V.
    """

    score_nM: Tensor
    mass_nM: Tensor
    num_kept: int | None
    column_nM: Tensor | None

    def log_probability(self, column_n: Tensor) -> Tensor:
        """Return the log-probability of one id of each request, float64 [n]."""
        place_n1 = column_n[:, None]
        if self.column_nM is not None:
            place_n1 = (self.column_nM == place_n1).int().argmax(dim=1, keepdim=True)
        return self.score_nM.gather(1, place_n1)[:, 0] - self.mass_nM.sum(dim=1).log_()


def race(
    kept: Kept, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the columns drawn, int64 [n] (the lowest id on ties), and every id's score, float64 [n, V], if all
    take part."""
    num_ids = len(seed_n) * V
    if kept.column_nM is not None:
        return _race_in_columns(kept.mass_nM, kept.column_nM, V, first_id, seed_n, position_n), None
    if num_ids <= SMALL:
        ahead = _survival_ahead(tuple(seed_n.tolist()), first_id, V, seed_n.device)
        score_nV = ahead.at(position_n).div(kept.mass_nM)
    elif kept.num_kept is not None and 8 * kept.num_kept <= num_ids:
        return _race_of_few(kept.mass_nM, V, first_id, seed_n, position_n), None
    else:
        score_nV = log_survival(seed_n, position_n, first_id, V).div_(kept.mass_nM)
    return score_nV.argmax(dim=1), score_nV


class SurvivalAhead:
    """`log_survival` of some requests. With few ids, `AHEAD` positions cost about four times as much as one, and an
    engine requests one after the other: when the second in a row is requested, the following ones are generated with
    it."""

    def __init__(self, seeds: tuple[int, ...], first_id: int, V: int, device: torch.device) -> None:
        self._seeds, self._first_id, self._V = seeds, first_id, V
        self._made: tuple[list[int], Tensor] = (
            [-2] * len(seeds),
            torch.empty(0, len(seeds), V, device=device),
        )

    def at(self, position_n: Tensor) -> Tensor:
        """Return float64 [n, V]; read-only."""
        # one atomic read: there may be several threads
        (starts, made_anV), positions = self._made, position_n.tolist()
        steps = {position - start for position, start in zip(positions, starts, strict=True)}
        step = steps.pop() if len(steps) == 1 else -1
        if not 0 <= step < len(made_anV):
            num, step = AHEAD if step == len(made_anV) else 1, 0
            seed_an = torch.tensor(self._seeds, device=made_anV.device).expand(num, -1).flatten()
            position_an = (
                torch.arange(num, device=made_anV.device)[:, None] + position_n
            ).flatten()
            made_anV = log_survival(seed_an, position_an, self._first_id, self._V).view(
                num, -1, self._V
            )
            self._made = positions, made_anV
        return made_anV[step]


_survival_ahead = lru_cache(maxsize=4)(SurvivalAhead)


def _race_in_columns(
    mass_nM: Tensor, column_nM: Tensor, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> Tensor:
    """Run `race` among some columns of each request."""
    id_nM = column_nM + first_id
    bits_nM4 = philox4x32(seed_n, id_nM >> 2, position_n)
    score_nM = log_survival_of(bits_nM4.gather(2, (id_nM & 3)[..., None])[..., 0]).div_(mass_nM)
    return torch.where(score_nM == score_nM.amax(dim=1, keepdim=True), column_nM, V).amin(dim=1)


def _race_of_few(
    mass_nV: Tensor, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> Tensor:
    """Run `race` among the ids that have a mass, with all requests in one row."""
    index_L = mass_nV.view(-1).nonzero()[:, 0]
    row_L = index_L // V
    column_L = index_L - row_L * V
    id_L = column_L + first_id
    bits_L4 = philox4x32(seed_n[row_L], id_L[:, None] >> 2, position_n[row_L])[:, 0]
    score_L = log_survival_of(bits_L4.gather(1, (id_L & 3)[:, None])[:, 0]).div_(
        mass_nV.view(-1)[index_L]
    )
    best_n = torch.full_like(mass_nV[:, 0], -math.inf).scatter_reduce_(0, row_L, score_L, "amax")
    column_L = torch.where(score_L == best_n[row_L], column_L, V)
    return torch.full_like(seed_n, V).scatter_reduce_(0, row_L, column_L, "amin")
