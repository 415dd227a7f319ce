"""The same tokens as `reference.py` from fewer operations: the fast path where there is no GPU.

No row is sorted. Top-k takes its ids by groups. The border of a nucleus is not looked for where most draws fall inside: the race
is run without it, and the winner is in if the ids above it have less than p of the mass; else, and where the border itself is
wanted, masses are added up in buckets. The race is decided by products, the arg max of log(1 - u) / mass: one logarithm an id,
and where few ids are left, of theirs alone. For one request with few ids a call costs more than its arithmetic: settings are
looked at as Python's numbers, and what is off is left out.
Legend: n requests, m some of them, V ids of the slice, M ids looked at (all, or each request's largest in descending order), L
kept ids of all requests together, a positions ahead, b buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.philox import philox4x32
from cm3kernels.guided_sample.reference import legal_ids, log_survival, log_survival_of, mix, only, reference_logits

#: Ids of all requests up to which a race of all costs less than finding who takes part.
SMALL = 8192
#: Ids of all requests that are looked at in one go: more of them would leave the cache, and every float64 of theirs would be
#: memory fresh from the system, which costs more than the arithmetic.
AT_ONCE = 32768
#: Positions whose random numbers are made together, for few ids.
AHEAD = 16
#: The p from which a nucleus is left to a look at the winner.
LEFT_TO_THE_WINNER = 0.8
#: Nats below the largest that a nucleus' buckets are spread over; what is further away falls into the last.
BUCKETED_NATS = 32.0


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
        """Those of some requests."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {name: None if value is None else value[index_m] for name, value in values.items()}
        return Settings(**some)


@dataclass(frozen=True)
class Nucleus:
    """A top-p filter whose border is not known: the ids of largest keys whose mass reaches p of the request's.

    Args:
        key_nM: -inf where there is no mass.
        mass_nM: float64.
        p_n, ps: floating [n], and the same as numbers; >= 1 is off.
    """

    key_nM: Tensor
    mass_nM: Tensor
    p_n: Tensor
    ps: Sequence[float]


@dataclass(frozen=True)
class Kept:
    """What the filters leave, of M ids of each request.

    Args:
        score_nM: float64; (x - largest x) / temperature.
        mass_nM: float64; exp of the score, 0 where an id is not kept.
        num_kept: of all requests together, at most; None: not counted.
        column_nM: where the M ids stand among V; None: M is V.
    """

    score_nM: Tensor
    mass_nM: Tensor
    num_kept: int | None
    column_nM: Tensor | None

    def log_probability(self, column_n: Tensor) -> Tensor:
        """Of one id of each request, float64 [n]."""
        place_n1 = column_n[:, None]
        if self.column_nM is not None:
            place_n1 = (self.column_nM == place_n1).int().argmax(dim=1, keepdim=True)
        return self.score_nM.gather(1, place_n1)[:, 0] - self.mass_nM.sum(dim=1).log_()


def guided_sample_eager(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, first_id: int, **given: Any) -> Tensor:
    """See `cm3kernels.guided_sample`."""
    n, V, ks = len(stream_rows_nG), logits_SV.shape[1], _numbers(given["top_k_n"])
    narrow = all(0 < k <= V // 8 for k in ks or [0])  # most of the work is then on fewer ids
    step = max(AT_ONCE * (4 if narrow else 1) // V, 1)
    with torch.inference_mode():  # an operation costs less in it; the sum below makes an ordinary tensor
        if n <= step:
            column_n = _some(logits_SV, stream_rows_nG, weights_nG, first_id=first_id, first_request=0, **given)
        else:
            column_n = torch.empty(n, dtype=torch.int64, device=logits_SV.device)
            for start in range(0, n, step):
                part = slice(start, start + step)
                of_part = {name: None if value is None else value[part] for name, value in given.items()}
                column_n[part] = _some(logits_SV, stream_rows_nG[part], weights_nG[part], first_id=first_id, first_request=start,
                                       **of_part)
    return column_n + first_id


def _some(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, reference_n: Tensor | None, allowed_nV: Tensor | None,
          allowed_bits_nW: Tensor | None, allowed_from_n: Tensor | None, allowed_to_n: Tensor | None, first_id: int,
          first_request: int, out_log_probability_n: Tensor | None, **settings: Any) -> Tensor:
    """Columns drawn for requests `first_request` and following, int64 [n]."""
    of, n, V = Settings(**settings), len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n)
    mixed_nV, legal_nV = mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV, first_request)
    mixed_nV, reference_nV = only(legal_nV, mixed_nV), None
    if of.plausible_top_k_n is not None or of.plausible_top_p_n is not None or of.plausible_alpha_n is not None:
        reference_nV = reference_logits(logits_SV, stream_rows_nG, reference_n)
        reference_nV = only(legal_nV, reference_nV if reference_nV.dtype == torch.float64 else reference_nV.float())
    return _draw(mixed_nV, reference_nV, of, first_id, out_log_probability_n, look=out_log_probability_n is None)


def _draw(mixed_nV: Tensor, reference_nV: Tensor | None, of: Settings, first_id: int, out_log_probability_n: Tensor | None, *,
          look: bool) -> Tensor:
    """Columns drawn, int64 [n].

    Args:
        mixed_nV, reference_nV: logits, -inf where an id is not legal. No reference: no plausibility filter.
        of: settings.
        first_id: id of column 0.
        out_log_probability_n: float32 [n], receives the log-probabilities.
        look: whether a nucleus may be left to a look at the winner.
    """
    V, temperature_n, nucleus = mixed_nV.shape[1], of.temperature_n, None
    greedy = [value <= 0 for value in _numbers(temperature_n)]
    if reference_nV is not None:
        last = not any(greedy) and of.top_k_n is None and of.top_p_n is None and of.min_p_n is None and of.typical_p_n is None
        floor_n1, nucleus = _plausible_floor(reference_nV, of, look=look and last)
        mixed_nV = mixed_nV if floor_n1 is None else only(reference_nV >= floor_n1, mixed_nV)
    if temperature_n is None or not any(greedy):
        kept, nucleus = _filter(mixed_nV, temperature_n, of, nucleus, look=look)
        column_n = _race(kept, V, first_id, of)
        if out_log_probability_n is not None:
            out_log_probability_n.copy_(kept.log_probability(column_n))
    elif all(greedy):
        column_n = mixed_nV.argmax(dim=1)
        if out_log_probability_n is not None:
            out_log_probability_n.zero_()
    else:  # those that draw, as if the others did, too
        greedy_n = temperature_n <= 0
        column_n = _draw(mixed_nV, None, replace(of, temperature_n=temperature_n.masked_fill(greedy_n, 1.0)), first_id,
                         out_log_probability_n, look=look)
        column_n = torch.where(greedy_n, mixed_nV.argmax(dim=1), column_n)
        if out_log_probability_n is not None:
            out_log_probability_n.masked_fill_(greedy_n, 0.0)
    outside = [] if nucleus is None else _outside(nucleus, column_n)
    if outside:
        index_m = torch.tensor(outside, device=column_n.device)
        reference_mV = None if reference_nV is None else reference_nV[index_m]
        column_n[index_m] = _draw(mixed_nV[index_m], reference_mV, of.of(index_m), first_id, None, look=False)
    return column_n


def _numbers(values_n: Tensor | None) -> list[Any]:
    return [] if values_n is None else values_n.tolist()


def _outside(nucleus: Nucleus, column_n: Tensor) -> list[int]:
    """Requests whose winner is not in the nucleus: the ids above it have p of the mass without it. Uses up the masses."""
    key_nM, total_n = nucleus.key_nM, nucleus.mass_nM.sum(dim=1)
    above_n = nucleus.mass_nM.mul_(key_nM > key_nM.gather(1, column_n[:, None])).sum(dim=1)
    sums = zip(above_n.tolist(), total_n.tolist(), nucleus.ps, strict=True)
    return [place for place, (above, total, p) in enumerate(sums) if p < 1 and above >= p * total and above > 0]


def _plausible_floor(reference_nV: Tensor, of: Settings, *, look: bool) -> tuple[Tensor | None, Nucleus | None]:
    """Smallest plausible logit of the reference stream, [n, 1] (None: every one is), and the nucleus that it leaves out."""
    V, floor_n1, nucleus = reference_nV.shape[1], None, None
    ks, ps = _numbers(of.plausible_top_k_n), _numbers(of.plausible_top_p_n)
    if any(0 < k < V for k in ks):
        floor_n1 = _kth(_largest(reference_nV, max(k for k in ks if k < V))[0], ks, V)
    if of.plausible_top_p_n is not None and any(p < 1 for p in ps):
        mass_nV = reference_nV.to(torch.float64, copy=True)
        mass_nV.sub_(mass_nV.amax(dim=1, keepdim=True)).exp_()
        if floor_n1 is not None:
            mass_nV.mul_(_at_least(reference_nV, floor_n1))
        nucleus = Nucleus(reference_nV, mass_nV, of.plausible_top_p_n, ps)
        if not look or min(ps) < LEFT_TO_THE_WINNER:
            floor_n1, nucleus = _higher(floor_n1, _nucleus_floor(nucleus)), None
    alphas, alpha_k_n = _numbers(of.plausible_alpha_n), of.plausible_k_n
    if of.plausible_alpha_n is not None and any(alpha > 0 for alpha in alphas):
        ks = [1] if alpha_k_n is None else [min(max(k, 1), V) for k in alpha_k_n.tolist()]
        largest_nM = _largest(reference_nV, max(ks))[0].double()
        kth_n1 = largest_nM[:, :1]
        if max(ks) > 1:  # past the legal ids: the smallest of them
            k_n1 = torch.tensor(ks, device=kth_n1.device)[:, None].minimum((largest_nM > -math.inf).sum(dim=1, keepdim=True))
            kth_n1 = largest_nM.gather(1, k_n1 - 1)
        log_alpha_n1 = of.plausible_alpha_n.double()[:, None].clamp(min=0).log_()
        floor_n1 = _higher(floor_n1, (kth_n1 + log_alpha_n1).minimum(largest_nM[:, :1]))
    return floor_n1, nucleus


def _at_least(values_nM: Tensor, floor_n1: Tensor) -> Tensor:
    """1 where a value is at least the floor, else 0; float64, since to multiply masses costs less than to choose them."""
    return torch.ge(values_nM, floor_n1, out=torch.empty(values_nM.shape, dtype=torch.float64, device=values_nM.device))


def _higher(first_n1: Tensor | None, second_n1: Tensor) -> Tensor:
    return second_n1 if first_n1 is None else torch.maximum(first_n1, second_n1)


def _filter(mixed_nV: Tensor, temperature_n: Tensor | None, of: Settings, nucleus: Nucleus | None, *,
            look: bool) -> tuple[Kept, Nucleus | None]:
    """Temperature (above 0), top-k, top-p, min-p and typical ids. A nucleus is left out, the given one or that of top-p, where
    `look` allows it."""
    V, column_nM, floor_n1 = mixed_nV.shape[1], None, None
    ks, ps, typical_ps = _numbers(of.top_k_n), _numbers(of.top_p_n), _numbers(of.typical_p_n)
    if any(0 < k < V for k in ks):
        most = max(k for k in ks if k < V)
        narrow = all(0 < k < V for k in ks) and len(ks) * V > SMALL
        # With what is tied with the last.
        largest_nM, place_nM = _largest(mixed_nV, min(most + most // 8 + 8, V) if narrow else most)
        floor_n1, last_n1 = _kth(largest_nM, ks, V).double(), largest_nM[:, -1:]
        if narrow and bool(((last_n1 < floor_n1) | (last_n1 == -math.inf)).all()):
            mixed_nV, column_nM = largest_nM, place_nM
    score_nM = mixed_nV.double()  # mixed logits are float32: this is a copy
    highest_n1 = score_nM.amax(dim=1, keepdim=True)
    score_nM.sub_(highest_n1)
    floor_n1 = None if floor_n1 is None else floor_n1 - highest_n1
    if temperature_n is not None:
        temperature_n1 = temperature_n.double()[:, None]
        score_nM.div_(temperature_n1)
        floor_n1 = None if floor_n1 is None else floor_n1.div_(temperature_n1)
    mass_nM = score_nM.exp()
    if of.top_p_n is not None and any(p < 1 for p in ps):
        if floor_n1 is not None:
            mass_nM.mul_(_at_least(score_nM, floor_n1))
        top = Nucleus(score_nM, mass_nM, of.top_p_n, ps)
        if column_nM is None and of.typical_p_n is None and look and min(ps) >= LEFT_TO_THE_WINNER:
            nucleus = top
        else:
            floor_n1 = _higher(floor_n1, _nucleus_floor(top, descending=column_nM is not None))
    if of.min_p_n is not None:
        floor_n1 = _higher(floor_n1, of.min_p_n.double()[:, None].log())
    keep_nM = None if floor_n1 is None else _at_least(score_nM, floor_n1)
    if of.typical_p_n is not None and any(p < 1 for p in typical_ps):
        mass_nM = mass_nM if keep_nM is None else mass_nM.mul_(keep_nM)
        typical_nM = _typical(score_nM, mass_nM, of.typical_p_n, typical_ps)
        keep_nM = typical_nM if keep_nM is None else keep_nM.mul_(typical_nM)
    raced_nM = mass_nM if keep_nM is None else mass_nM * keep_nM  # the masses may still be a nucleus'
    num_kept = None if keep_nM is None else int(keep_nM.sum())
    if nucleus is not None and len(mixed_nV) * V > SMALL:  # ids so light that together they have less than 1 - p are not in it
        light_n1 = nucleus.mass_nM.sum(dim=1, keepdim=True).mul_(0.999 / V * (1 - nucleus.p_n.double()[:, None]).clamp_(min=0))
        heavy_nM = _at_least(nucleus.mass_nM, light_n1)
        heavier_nM = raced_nM * heavy_nM
        if bool((heavier_nM.amax(dim=1) > 0).all()):  # else guidance is so strong that only a light id has a mass
            raced_nM, num_kept = heavier_nM, int(heavy_nM.sum())
    return Kept(score_nM, raced_nM, num_kept, column_nM), nucleus


def _typical(score_nM: Tensor, mass_nM: Tensor, p_n: Tensor, ps: Sequence[float]) -> Tensor:
    """`reference.typical_ids` of what has a mass, as `_at_least` says it.

    Surprise and entropy have the same normaliser, so their distance is that of a score to the mean score."""
    mean_n1 = (mass_nM * score_nM.clamp(min=-1000.0)).sum(dim=1, keepdim=True) / mass_nM.sum(dim=1, keepdim=True)
    nearness_nM = torch.where(mass_nM > 0, (score_nM - mean_n1).abs_().neg_(), -math.inf)
    return _at_least(nearness_nM, _nucleus_floor(Nucleus(nearness_nM, mass_nM, p_n, ps)))


def _kth(descending_nM: Tensor, ks: Sequence[int], V: int) -> Tensor:
    """The k-th value of each row, [n, 1]; -inf where k is off (<= 0 or >= V)."""
    if min(ks) == max(ks):
        return descending_nM[:, ks[0] - 1:ks[0]]
    place_n1 = torch.tensor([k - 1 if 0 < k < V else -1 for k in ks], device=descending_nM.device)[:, None]
    return descending_nM.gather(1, place_n1.clamp(min=0)).masked_fill_(place_n1 < 0, -math.inf)


def _largest(values_nV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """`values_nV.topk(num)`: values in descending order and their columns, [n, num].

    By groups, of which the `num` with the largest maxima hold the `num` largest values: a k-th of the work in two steps."""
    V = values_nV.shape[1]
    size = 2 ** max(round(math.log2(V / num) / 2), 0)  # as many groups as values in the groups that are kept
    if size < 4 or V % size:
        best_nM, column_nM = values_nV.topk(num, dim=1)
        return best_nM, column_nM
    num_groups = V // size
    group_nM = values_nV.view(-1, size, num_groups).amax(dim=1).topk(num, dim=1, sorted=False).indices
    first_1s1 = torch.arange(0, V, num_groups, device=values_nV.device)[None, :, None]
    column_nc = (group_nM[:, None, :] + first_1s1).flatten(1)
    best_nM, place_nM = values_nV.gather(1, column_nc).topk(num, dim=1)
    return best_nM, column_nc.gather(1, place_nM)


def _nucleus_floor(nucleus: Nucleus, *, descending: bool = False) -> Tensor:
    """Smallest key [n, 1] of a nucleus; -inf where p >= 1. `descending`: the keys are in order."""
    key_nM, mass_nM, ps, p_n1 = nucleus.key_nM, nucleus.mass_nM, nucleus.ps, nucleus.p_n.double()[:, None]
    if descending:
        sum_nM = mass_nM.cumsum(dim=1)
        floor_n1 = key_nM.gather(1, (sum_nM < p_n1 * sum_nM[:, -1:]).sum(dim=1, keepdim=True).clamp_(max=key_nM.shape[1] - 1))
    elif 2 * sum(p < 1 for p in ps) > len(ps):
        floor_n1 = _bucketed_floor(key_nM, mass_nM, p_n1)
    else:
        index_m = torch.tensor([place for place, p in enumerate(ps) if p < 1], device=key_nM.device)
        floor_n1 = torch.empty_like(key_nM[:, :1])
        floor_n1[index_m] = _bucketed_floor(key_nM[index_m], mass_nM[index_m], p_n1[index_m])
    return floor_n1.masked_fill_(p_n1 >= 1, -math.inf)


def _bucketed_floor(key_nM: Tensor, mass_nM: Tensor, p_n1: Tensor) -> Tensor:
    """`_nucleus_floor` without putting a row in order: masses are added up in buckets of equal width below the largest key, and
    only the bucket in which the sum reaches p is ordered. Buckets never part equal keys, so the result is exact."""
    n, M = key_nM.shape
    num_buckets = min(max(M // 4, 64), 2048)
    highest_n1 = key_nM.amax(dim=1, keepdim=True)
    width_n1 = (highest_n1 - key_nM.amin(dim=1, keepdim=True)).clamp_(1e-30, BUCKETED_NATS).div_(num_buckets)
    bucket_nM = (highest_n1 - key_nM).div_(width_n1).clamp_(max=num_buckets - 1).long()
    sum_nb = torch.zeros(n, num_buckets, dtype=torch.float64, device=key_nM.device).scatter_add_(1, bucket_nM, mass_nM)
    sum_nb = sum_nb.cumsum_(dim=1)
    wanted_n1 = p_n1.clamp(max=1.0) * sum_nb[:, -1:]  # reached in a bucket that has ids, also where p is off
    crossing_n1 = (sum_nb < wanted_n1).sum(dim=1, keepdim=True).clamp_(max=num_buckets - 1)
    before_n1 = sum_nb.gather(1, (crossing_n1 - 1).clamp_(min=0)).masked_fill_(crossing_n1 == 0, 0.0)
    inside_nM = bucket_nM == crossing_n1
    num_inside_n1 = inside_nM.sum(dim=1, keepdim=True)
    inner, place = torch.where(inside_nM, key_nM, -math.inf).topk(int(num_inside_n1.max()), dim=1)
    sum_inner = torch.where(inner > -math.inf, mass_nM.gather(1, place), 0.0).cumsum_(dim=1).add_(before_n1)
    last_n1 = (sum_inner < wanted_n1).sum(dim=1, keepdim=True).minimum(num_inside_n1 - 1)
    return inner.gather(1, last_n1)


def _race(kept: Kept, V: int, first_id: int, of: Settings) -> Tensor:
    """Columns drawn, int64 [n]; of equal scores the lowest id."""
    num_ids = len(of.seed_n) * V
    if kept.column_nM is not None or (num_ids > SMALL and kept.num_kept is not None and 8 * kept.num_kept <= num_ids):
        return _race_of_few(kept, V, first_id, of)
    if num_ids > SMALL:
        return log_survival(of.seed_n, of.position_n, first_id, V).div_(kept.mass_nM).argmax(dim=1)
    ahead = _survival_ahead(tuple(of.seed_n.tolist()), first_id, V, of.seed_n.device)
    return ahead.at(of.position_n).div(kept.mass_nM).argmax(dim=1)


class SurvivalAhead:
    """`log_survival` of some requests. Where ids are few, `AHEAD` positions cost some four times what one costs, and an engine
    asks for one after the other: when the second in a row is asked for, those that follow are made with it."""

    def __init__(self, seeds: tuple[int, ...], first_id: int, V: int, device: torch.device) -> None:
        self._seeds, self._first_id, self._V = seeds, first_id, V
        self._made: tuple[list[int], Tensor] = [-2] * len(seeds), torch.empty(0, len(seeds), V, device=device)

    def at(self, position_n: Tensor) -> Tensor:
        """float64 [n, V]; not to be written to."""
        (starts, made_anV), positions = self._made, position_n.tolist()  # read in one step: there may be threads
        steps = {position - start for position, start in zip(positions, starts, strict=True)}
        step = steps.pop() if len(steps) == 1 else -1
        if not 0 <= step < len(made_anV):
            num, step = AHEAD if step == len(made_anV) else 1, 0
            seed_an = torch.tensor(self._seeds, device=made_anV.device).expand(num, -1).flatten()
            position_an = (torch.arange(num, device=made_anV.device)[:, None] + position_n).flatten()
            made_anV = log_survival(seed_an, position_an, self._first_id, self._V).view(num, -1, self._V)
            self._made = positions, made_anV
        return made_anV[step]


_survival_ahead = lru_cache(maxsize=4)(SurvivalAhead)


def _race_of_few(kept: Kept, V: int, first_id: int, of: Settings) -> Tensor:
    """`_race` among the kept ids alone, of all requests in one row."""
    n, M = kept.mass_nM.shape
    index_L = kept.mass_nM.view(-1).nonzero()[:, 0]
    row_L = index_L // M
    column_L = index_L - row_L * M if kept.column_nM is None else kept.column_nM.view(-1)[index_L]
    id_L = column_L + first_id
    if n == 1:
        bits_L4 = philox4x32(of.seed_n, id_L[None] >> 2, of.position_n)[0]
    else:
        bits_L4 = philox4x32(of.seed_n[row_L], id_L[:, None] >> 2, of.position_n[row_L])[:, 0]
    score_L = log_survival_of(bits_L4.gather(1, (id_L & 3)[:, None])[:, 0]).div_(kept.mass_nM.view(-1)[index_L])
    best_n = torch.full((n,), -math.inf, dtype=torch.float64, device=score_L.device).scatter_reduce_(0, row_L, score_L, "amax")
    column_L = torch.where(score_L == best_n[row_L], column_L, V)
    return torch.full((n,), V, device=score_L.device).scatter_reduce_(0, row_L, column_L, "amin")
