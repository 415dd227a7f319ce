"""The same tokens as `reference.py` from fewer operations: the fast path where there is no GPU.

Most requests are decided by their few best ids. So a first look takes the largest ids of the leading stream (the reference stream
where a plausibility filter is on, else the mixed logits), filters and draws among them, and proves that nothing else could
have won: either every id that the filters keep is among them, or the best score is out of reach of what is left, since
no id's noise exceeds `HIGHEST_NOISE`. Requests without such a proof are drawn over all ids.
Legend: n requests, V ids of the slice, M ids of the first look, in descending order of the leading values; b buckets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.philox import MASK, philox4x32
from cm3kernels.guided_sample.reference import alpha_threshold, legal_ids, mix, noise_of, only, race_noise, tempered

#: Ids looked at first where no k says how many; the next best shows whether they were enough.
FIRST_LOOK = 64
#: -log of the smallest exponential variate, -log1p(-2**-25), rounded up.
HIGHEST_NOISE = 17.4
#: Buckets of a nucleus that is too wide for the first look: this many to a nat, over 32 nats.
BUCKETS_PER_NAT, NUM_BUCKETS = 64, 2048


@dataclass(frozen=True)
class _Settings:
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

    def of(self, index_m: Tensor) -> _Settings:
        """Those of some requests."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return _Settings(**{name: None if value is None else value[index_m] for name, value in values.items()})


def guided_sample_eager(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, reference_n: Tensor | None,
                        allowed_nV: Tensor | None, allowed_bits_nW: Tensor | None, allowed_from_n: Tensor | None,
                        allowed_to_n: Tensor | None, first_id: int, out_log_probability_n: Tensor | None,
                        **settings: Any) -> Tensor:
    """See `cm3kernels.guided_sample`."""
    n, V = len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n)
    mixed_nV, reference_nV, legal_nV = mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV)
    of = _Settings(**settings)
    mixed_nV, guided_n = only(legal_nV, mixed_nV), _has_plausible(of, V)
    if guided_n is not None:
        reference_nV = only(legal_nV, reference_nV)
    log_probability_n = None if out_log_probability_n is None else torch.zeros(n, dtype=torch.float64, device=logits_SV.device)

    token_n = torch.empty(n, dtype=torch.int64, device=logits_SV.device)
    for guided, index_m in _parts(guided_n, n):
        values = (mixed_nV, reference_nV, of) if index_m is None else (mixed_nV[index_m], reference_nV[index_m], of.of(index_m))
        token_m, log_m = _draw(*values, guided, first_id, log_probability_n is not None)
        if index_m is None:
            token_n, log_probability_n = token_m, log_m
        else:
            token_n[index_m] = token_m
            if log_probability_n is not None and log_m is not None:
                log_probability_n[index_m] = log_m
    if out_log_probability_n is not None and log_probability_n is not None:
        out_log_probability_n.copy_(log_probability_n)
    return token_n + first_id


def _has_plausible(of: _Settings, V: int) -> Tensor | None:
    """Requests with a plausibility filter, bool [n]; None: none has."""
    filters = []
    if of.plausible_top_k_n is not None:
        filters.append((of.plausible_top_k_n > 0) & (of.plausible_top_k_n < V))
    if of.plausible_top_p_n is not None:
        filters.append(of.plausible_top_p_n < 1)
    if of.plausible_alpha_n is not None:
        filters.append(of.plausible_alpha_n > 0)
    if not filters:
        return None
    on_n = torch.stack(filters).any(dim=0)
    return on_n if bool(on_n.any()) else None


def _parts(guided_n: Tensor | None, n: int) -> list[tuple[bool, Tensor | None]]:
    """The batch in at most two parts, with and without plausibility filters; None for an index is the whole batch."""
    if guided_n is None:
        return [(False, None)]
    if bool(guided_n.all()):
        return [(True, None)]
    return [(True, guided_n.nonzero()[:, 0]), (False, (~guided_n).nonzero()[:, 0])]


def _draw(mixed_nV: Tensor, reference_nV: Tensor, of: _Settings, guided: bool, first_id: int,
          with_log: bool) -> tuple[Tensor, Tensor | None]:
    """Columns drawn and their log-probabilities: by the first look, over all ids where it did not do."""
    looked = _first_look_guided if guided else _first_look
    token_n, log_n, proven_n = looked(mixed_nV, reference_nV, of, first_id, with_log)
    if not bool(proven_n.all()):
        rest_m = (~proven_n).nonzero()[:, 0]
        token_m, log_m = _draw_wide(mixed_nV[rest_m], reference_nV[rest_m], of.of(rest_m), guided, first_id, with_log)
        token_n[rest_m] = token_m
        if log_n is not None and log_m is not None:
            log_n[rest_m] = log_m
    return token_n, log_n


def _first_look(mixed_nV: Tensor, reference_nV: Tensor, of: _Settings, first_id: int,
                with_log: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Draw among the largest mixed logits. Also returns which draws are proven."""
    V = mixed_nV.shape[1]
    num = _num_looked_at(V, of.top_k_n)
    best_nM, column_nM = mixed_nV.topk(num, dim=1)
    total_n1 = None
    if num < V and of.top_p_n is not None and (of.top_k_n is None or bool(((of.top_k_n <= 0) | (of.top_k_n >= V)).any())):
        total_n1 = tempered(mixed_nV, of.temperature_n)[0].exp_().sum(dim=1, keepdim=True)
    race = _race(best_nM, column_nM, of, V, total_n1, first_id, with_log)
    proven_n = race.last_is_out_n
    if not with_log:
        proven_n = proven_n | (race.last_n + HIGHEST_NOISE < race.best_n)
    return race.column_n, race.log_probability_n, proven_n if num < V else torch.ones_like(proven_n)


def _first_look_guided(mixed_nV: Tensor, reference_nV: Tensor, of: _Settings, first_id: int,
                       with_log: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Draw among the reference stream's largest logits. Also returns which draws are proven."""
    V = mixed_nV.shape[1]
    alpha_k_n = of.plausible_k_n if of.plausible_alpha_n is not None else None
    num = _num_looked_at(V, of.plausible_top_k_n, alpha_k_n)
    reference_nM, column_nM = reference_nV.topk(num, dim=1)
    total_n1 = None
    if num < V and of.plausible_top_p_n is not None:
        total_n1 = (reference_nV - reference_nM[:, :1]).exp_().sum(dim=1, keepdim=True)
    threshold_n1 = _top_threshold(reference_nM, of.plausible_top_k_n, of.plausible_top_p_n, V, total_n1)
    threshold_n1 = torch.maximum(threshold_n1, alpha_threshold(reference_nM, of.plausible_alpha_n, of.plausible_k_n))
    proven_n = reference_nM[:, -1] < threshold_n1[:, 0]
    if alpha_k_n is not None:  # the threshold is not known from fewer than k
        proven_n &= alpha_k_n <= num
    mixed_nM = only(reference_nM >= threshold_n1, mixed_nV.gather(1, column_nM))
    if of.top_k_n is not None or of.top_p_n is not None:
        mixed_nM, order_nM = mixed_nM.sort(dim=1, descending=True)
        column_nM = column_nM.gather(1, order_nM)
    race = _race(mixed_nM, column_nM, of, V, None, first_id, with_log)
    return race.column_n, race.log_probability_n, proven_n if num < V else torch.ones_like(proven_n)


def _num_looked_at(V: int, *ks: Tensor | None) -> int:
    """One more than the largest k that is on and at most a quarter of V; `FIRST_LOOK` and one if there is none."""
    largest = [int((k_n * (k_n <= V // 4)).max()) for k_n in ks if k_n is not None]
    return min(max([k for k in largest if k > 1], default=FIRST_LOOK) + 1, V)


@dataclass(frozen=True)
class _Race:
    """Who won among M ids, each [n]: its column, its score, its log-probability if asked for; the last id's score without noise,
    and whether the filters left the last id out (so that all that would follow are out as well)."""

    column_n: Tensor
    best_n: Tensor
    log_probability_n: Tensor | None
    last_n: Tensor
    last_is_out_n: Tensor


def _race(mixed_nM: Tensor, column_nM: Tensor, of: _Settings, V: int, total_n1: Tensor | None, first_id: int,
          with_log: bool) -> _Race:
    """Temperature, top-k, top-p and the draw among M ids; in descending order of `mixed_nM` where top-k or top-p are given.
    `total_n1`: see `_top_threshold`."""
    scores_nM, greedy_n1 = tempered(mixed_nM, of.temperature_n)
    threshold_n1 = _top_threshold(scores_nM, of.top_k_n, of.top_p_n, V, total_n1)
    if of.temperature_n is not None:
        threshold_n1 = threshold_n1.masked_fill(greedy_n1, 0.0)
    kept_nM = only(scores_nM >= threshold_n1, scores_nM)
    id_nM = column_nM + first_id
    words_nM4 = philox4x32(of.seed_n, id_nM >> 2, of.position_n & MASK)
    noise_nM = noise_of(words_nM4.gather(2, (id_nM & 3)[..., None])[..., 0])
    if of.temperature_n is not None:
        noise_nM.mul_(~greedy_n1)
    raced_nM = noise_nM.add_(kept_nM)
    best_n1 = raced_nM.amax(dim=1, keepdim=True)
    wins_nM = raced_nM == best_n1
    column_n = column_nM.masked_fill(~wins_nM, V).amin(dim=1)  # of equal scores the lowest id
    log_probability_n = None
    if with_log:
        log_nM = kept_nM.log_softmax(dim=1).masked_fill_(greedy_n1, 0.0)
        log_probability_n = log_nM.gather(1, (column_nM == column_n[:, None]).int().argmax(dim=1, keepdim=True))[:, 0]
    return _Race(column_n, best_n1[:, 0], log_probability_n, scores_nM[:, -1], scores_nM[:, -1] < threshold_n1[:, 0])


def _top_threshold(descending_nM: Tensor, k_n: Tensor | None, p_n: Tensor | None, V: int, total_n1: Tensor | None) -> Tensor:
    """`reference.top_threshold` from the M largest of V values.

    `total_n1` is the mass of all V, relative to the largest, for the requests without a k; None: nothing is left beyond the M.
    A threshold that lies beyond the M comes out as the last of them: that one is kept, and so nothing is proven.
    """
    M = descending_nM.shape[1]
    threshold_n1 = torch.full_like(descending_nM[:, :1], -math.inf)
    on_n1 = None
    if k_n is not None:
        on_n1 = ((k_n > 0) & (k_n < V))[:, None]
        threshold_n1 = descending_nM.gather(1, k_n[:, None].clamp(1, M) - 1).masked_fill(~on_n1, -math.inf)
    if p_n is not None:
        p_n1 = p_n.double()[:, None]
        mass_nM = only(descending_nM >= threshold_n1, descending_nM - descending_nM[:, :1]).exp_().cumsum_(dim=1)
        kept_n1 = mass_nM[:, -1:]
        if total_n1 is not None:
            kept_n1 = total_n1 if on_n1 is None else torch.where(on_n1, kept_n1, total_n1)
        last_n1 = (mass_nM < p_n1 * kept_n1).sum(dim=1, keepdim=True).clamp_(max=M - 1)
        nucleus_n1 = descending_nM.gather(1, last_n1).masked_fill_(p_n1 >= 1, -math.inf)
        threshold_n1 = torch.maximum(threshold_n1, nucleus_n1)
    return threshold_n1


def _draw_wide(mixed_nV: Tensor, reference_nV: Tensor, of: _Settings, guided: bool, first_id: int,
               with_log: bool) -> tuple[Tensor, Tensor | None]:
    """Draw among all ids, without a sort of them."""
    V = mixed_nV.shape[1]
    if guided:
        threshold_n1 = torch.maximum(_wide_threshold(reference_nV, of.plausible_top_k_n, of.plausible_top_p_n),
                                     alpha_threshold(reference_nV, of.plausible_alpha_n, of.plausible_k_n))
        mixed_nV = only(reference_nV >= threshold_n1, mixed_nV)
    scores_nV, greedy_n1 = tempered(mixed_nV, of.temperature_n)
    threshold_n1 = _wide_threshold(scores_nV, of.top_k_n, of.top_p_n).masked_fill(greedy_n1, 0.0)
    kept_nV = only(scores_nV >= threshold_n1, scores_nV)
    column_n = race_noise(of.seed_n, of.position_n, first_id, V).mul_(~greedy_n1).add_(kept_nV).argmax(dim=1)
    if not with_log:
        return column_n, None
    return column_n, kept_nV.log_softmax(dim=1).gather(1, column_n[:, None])[:, 0].masked_fill(greedy_n1[:, 0], 0.0)


def _wide_threshold(values_nV: Tensor, k_n: Tensor | None, p_n: Tensor | None) -> Tensor:
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
