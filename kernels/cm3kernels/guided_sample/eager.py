"""The same tokens as `reference.py` from fewer operations: the fast path where there is no GPU.

Most requests are decided by their few best ids. So a first look takes the largest ids of the leading stream (the reference stream
where a plausibility filter is on, else the mixed logits), filters and draws among them, and proves that nothing else could
have won: either every id that the filters keep is among them, or the best score is out of reach of what is left, since
no id's noise exceeds `HIGHEST_NOISE`. Requests without such a proof are drawn over all ids (`eager_wide.py`).
With few ids a call costs more than its arithmetic: settings are looked at as Python numbers, and what is off is left out.
Legend: n requests, V ids of the slice, M ids of the first look, in descending order of the leading values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.eager_wide import Settings, draw_wide
from cm3kernels.guided_sample.philox import MASK, philox4x32
from cm3kernels.guided_sample.reference import alpha_threshold, legal_ids, mix, noise_of, only, reference_stream, tempered

#: Ids looked at first where no k says how many; one more shows whether they were enough.
FIRST_LOOK = 64
#: -log of the smallest exponential variate, -log1p(-2**-25), rounded up.
HIGHEST_NOISE = 17.4


def guided_sample_eager(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, reference_n: Tensor | None,
                        allowed_nV: Tensor | None, allowed_bits_nW: Tensor | None, allowed_from_n: Tensor | None,
                        allowed_to_n: Tensor | None, first_id: int, out_log_probability_n: Tensor | None,
                        **settings: Any) -> Tensor:
    """See `cm3kernels.guided_sample`."""
    n, V = len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n)
    mixed_nV, legal_nV = mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV)
    of = Settings(**settings)
    guided = _guided(of, V, n)
    mixed_nV = reference_nV = only(legal_nV, mixed_nV)
    if any(guided):
        reference_nV = only(legal_nV, reference_stream(logits_SV, stream_rows_nG, reference_n))
    with_log = out_log_probability_n is not None
    if all(guided) or not any(guided):
        token_n, log_n = _draw(mixed_nV, reference_nV, of, guided[0], first_id, with_log)
    else:
        token_n = torch.empty(n, dtype=torch.int64, device=logits_SV.device)
        log_n = torch.empty(n, dtype=torch.float64, device=logits_SV.device) if with_log else None
        for part in (True, False):
            index_m = torch.tensor([place for place in range(n) if guided[place] == part], device=logits_SV.device)
            token_m, log_m = _draw(mixed_nV[index_m], reference_nV[index_m], of.of(index_m), part, first_id, with_log)
            _put(token_n, log_n, index_m, token_m, log_m)
    if out_log_probability_n is not None and log_n is not None:
        out_log_probability_n.copy_(log_n)
    return token_n + first_id


def _put(token_n: Tensor, log_n: Tensor | None, index_m: Tensor, token_m: Tensor, log_m: Tensor | None) -> None:
    """Results of some requests into those of all."""
    token_n[index_m] = token_m
    if log_n is not None and log_m is not None:
        log_n[index_m] = log_m


def _guided(of: Settings, V: int, n: int) -> list[bool]:
    """Which requests have a plausibility filter."""
    off = [0] * n
    ks = off if of.plausible_top_k_n is None else of.plausible_top_k_n.tolist()
    ps = [1.0] * n if of.plausible_top_p_n is None else of.plausible_top_p_n.tolist()
    alphas = off if of.plausible_alpha_n is None else of.plausible_alpha_n.tolist()
    return [0 < k < V or p < 1 or alpha > 0 for k, p, alpha in zip(ks, ps, alphas, strict=True)]


def _draw(mixed_nV: Tensor, reference_nV: Tensor, of: Settings, guided: bool, first_id: int,
          with_log: bool) -> tuple[Tensor, Tensor | None]:
    """Columns drawn and their log-probabilities: by the first look, over all ids where it did not do."""
    V = mixed_nV.shape[1]
    looked = _look(mixed_nV, reference_nV, of, guided, first_id, with_log, FIRST_LOOK)
    if looked.proven_n is None or bool(looked.proven_n.all()):
        return looked.column_n, looked.log_probability_n
    column_n, log_n = looked.column_n, looked.log_probability_n
    rest_m, proven_m = (~looked.proven_n).nonzero()[:, 0], None
    if guided or of.top_k_n is not None or of.top_p_n is not None:  # a wider look helps a filter, hardly a bare draw
        again = _look(mixed_nV[rest_m], reference_nV[rest_m], of.of(rest_m), guided, first_id, with_log, V // 8)
        _put(column_n, log_n, rest_m, again.column_n, again.log_probability_n)
        if again.proven_n is None or bool(again.proven_n.all()):
            return column_n, log_n
        proven_m = again.proven_n
    rest_m = rest_m if proven_m is None else rest_m[~proven_m]
    drawn = draw_wide(mixed_nV[rest_m].double(), reference_nV[rest_m], of.of(rest_m), guided, first_id, with_log)
    _put(column_n, log_n, rest_m, *drawn)
    return column_n, log_n


@dataclass(frozen=True)
class _Look:
    """Column drawn, its log-probability if asked for, and whether the draw is proven (None: every one is); each [n]."""

    column_n: Tensor
    log_probability_n: Tensor | None
    proven_n: Tensor | None


def _look(mixed_nV: Tensor, reference_nV: Tensor, of: Settings, guided: bool, first_id: int, with_log: bool, least: int) -> _Look:
    """Draw among the `least` largest logits, or more where a k says so."""
    if guided:
        return _look_guided(mixed_nV, reference_nV, of, first_id, with_log, least)
    V = mixed_nV.shape[1]
    ks = None if of.top_k_n is None else of.top_k_n.tolist()
    num = _num_looked_at(V, least, ks)
    best_nM, column_nM = _largest(mixed_nV, num)
    total_n1 = None
    if num < V and of.top_p_n is not None and not all(0 < k < V for k in ks or (0,)):
        total_n1 = tempered(mixed_nV.double(), of.temperature_n)[0].exp_().sum(dim=1, keepdim=True)
    return _race(best_nM.double(), column_nM, of, V, total_n1, first_id, with_log, everything=num == V)


def _look_guided(mixed_nV: Tensor, reference_nV: Tensor, of: Settings, first_id: int, with_log: bool, least: int) -> _Look:
    """Draw among the reference stream's largest logits."""
    V = mixed_nV.shape[1]
    alpha_k_n = of.plausible_k_n if of.plausible_alpha_n is not None else None
    num = _num_looked_at(V, least, *(k_n.tolist() for k_n in (of.plausible_top_k_n, alpha_k_n) if k_n is not None))
    if of.plausible_alpha_n is not None:  # its set is as large as the row is flat, not as k
        num = min(max(num, 4 * FIRST_LOOK + 1), V)
    reference_nM, column_nM = _largest(reference_nV, num)
    total_n1 = None
    if num < V and of.plausible_top_p_n is not None:
        total_n1 = (reference_nV - reference_nM[:, :1]).exp_().sum(dim=1, keepdim=True)
    threshold_n1, settled_n1 = _top_threshold(reference_nM, of.plausible_top_k_n, of.plausible_top_p_n, V, total_n1)
    if of.plausible_alpha_n is not None:
        threshold_n1 = torch.maximum(threshold_n1, alpha_threshold(reference_nM, of.plausible_alpha_n, of.plausible_k_n))
    proven_n = None
    if num < V:
        proven_n = (reference_nM[:, -1:] < threshold_n1)[:, 0]
        if settled_n1 is not None:
            proven_n &= settled_n1[:, 0]
        if alpha_k_n is not None:  # from fewer than k the threshold is not known
            proven_n &= alpha_k_n <= num
    mixed_nM = torch.where(reference_nM >= threshold_n1, mixed_nV.gather(1, column_nM), -math.inf).double()
    if of.top_k_n is not None or of.top_p_n is not None:
        mixed_nM, order_nM = mixed_nM.sort(dim=1, descending=True)
        column_nM = column_nM.gather(1, order_nM)
    race = _race(mixed_nM, column_nM, of, V, None, first_id, with_log, everything=True)
    return _Look(race.column_n, race.log_probability_n, proven_n)


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


def _num_looked_at(V: int, least: int, *ks: list[int] | None) -> int:
    """One more than the largest k that is on and at most a quarter of V, or than `least` if there is none (or this is a second
    look, and more than that)."""
    largest = max([k for given in ks if given is not None for k in given if 1 < k <= V // 4], default=0)
    return min((largest if largest and least == FIRST_LOOK else max(largest, least)) + 1, V)


def _race(mixed_nM: Tensor, column_nM: Tensor, of: Settings, V: int, total_n1: Tensor | None, first_id: int,
          with_log: bool, *, everything: bool) -> _Look:
    """Temperature, top-k, top-p and the draw among M ids; in descending order of `mixed_nM` where top-k or top-p are given.
    `total_n1`: see `_top_threshold`. `everything`: no id beyond the M is left, so nothing is to be proven."""
    some_greedy = of.temperature_n is not None and min(of.temperature_n.tolist()) <= 0
    if some_greedy:
        scores_nM, greedy_n1 = tempered(mixed_nM, of.temperature_n)
    else:
        scores_nM, greedy_n1 = mixed_nM - mixed_nM.amax(dim=1, keepdim=True), None
        if of.temperature_n is not None:
            scores_nM.div_(of.temperature_n.double()[:, None])
    threshold_n1, settled_n1 = _top_threshold(scores_nM, of.top_k_n, of.top_p_n, V, total_n1)
    if greedy_n1 is not None:
        threshold_n1 = threshold_n1.masked_fill(greedy_n1, 0.0)
    last_n1, kept_nM = scores_nM[:, -1:], torch.where(scores_nM >= threshold_n1, scores_nM, -math.inf)
    if scores_nM.shape[1] > 2 * FIRST_LOOK and (of.top_k_n is not None or of.top_p_n is not None):  # in descending order
        num = max(int((kept_nM > -math.inf).sum(dim=1).max()), 1)
        kept_nM, column_nM = kept_nM[:, :num], column_nM[:, :num]
    id_nM = column_nM + first_id
    noise_nM = noise_of(philox4x32(of.seed_n, id_nM >> 2, of.position_n & MASK, id_nM & 3))
    if greedy_n1 is not None:
        noise_nM.mul_(~greedy_n1)
    raced_nM = noise_nM.add_(kept_nM)
    best_n1 = raced_nM.amax(dim=1, keepdim=True)
    column_n = torch.where(raced_nM == best_n1, column_nM, V).amin(dim=1)  # of equal scores the lowest id
    log_n = None
    if with_log:
        log_nM = kept_nM.log_softmax(dim=1)
        if greedy_n1 is not None:
            log_nM.masked_fill_(greedy_n1, 0.0)
        log_n = log_nM.gather(1, (column_nM == column_n[:, None]).int().argmax(dim=1, keepdim=True))[:, 0]
    if everything:
        return _Look(column_n, log_n, None)
    proven_n1 = last_n1 < threshold_n1  # the filters leave the last one out, and so all that would follow
    if not with_log and not bool(proven_n1.all()):
        proven_n1 |= last_n1 + HIGHEST_NOISE < best_n1
    if settled_n1 is not None:
        proven_n1 &= settled_n1 if greedy_n1 is None else settled_n1 | greedy_n1
    return _Look(column_n, log_n, proven_n1[:, 0])


def _top_threshold(descending_nM: Tensor, k_n: Tensor | None, p_n: Tensor | None, V: int,
                   total_n1: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`reference.top_threshold` from the M largest of V values.

    `total_n1` is the mass of all V, relative to the largest, for the requests without a k; None: nothing is left beyond the M.
    Also returns whether top-k is settled by the M, bool [n, 1] (None: it is); a threshold beyond them comes out too high.
    """
    M = descending_nM.shape[1]
    on_n1 = settled_n1 = None
    ks = [] if k_n is None else k_n.tolist()
    if k_n is not None and any(0 < k < V for k in ks):
        if min(ks) == max(ks):
            k = min(ks[0], M)
            threshold_n1 = descending_nM[:, k - 1:k]
            settled_n1 = descending_nM[:, -1:] < threshold_n1
        else:
            on_n1 = ((k_n > 0) & (k_n < V))[:, None]
            threshold_n1 = descending_nM.gather(1, k_n[:, None].clamp(1, M) - 1).masked_fill(~on_n1, -math.inf)
            settled_n1 = (descending_nM[:, -1:] < threshold_n1) | ~on_n1  # else more may be tied with it beyond the M
    else:
        threshold_n1 = torch.full_like(descending_nM[:, :1], -math.inf)
        on_n1 = torch.zeros_like(threshold_n1, dtype=torch.bool)
    if p_n is not None and min(ps := p_n.tolist()) < 1:
        mass_nM = descending_nM - descending_nM[:, :1]
        if settled_n1 is not None:
            mass_nM = torch.where(descending_nM >= threshold_n1, mass_nM, -math.inf)
        mass_nM = mass_nM.exp_().cumsum_(dim=1)
        kept_n1 = mass_nM[:, -1:]
        if total_n1 is not None and on_n1 is not None:
            kept_n1 = torch.where(on_n1, kept_n1, total_n1)
        last_n1 = (mass_nM < p_n.double()[:, None] * kept_n1).sum(dim=1, keepdim=True).clamp_(max=M - 1)
        nucleus_n1 = descending_nM.gather(1, last_n1)
        if max(ps) >= 1:
            nucleus_n1.masked_fill_((p_n >= 1)[:, None], -math.inf)
        threshold_n1 = torch.maximum(threshold_n1, nucleus_n1)
    return threshold_n1, settled_n1
