"""The same tokens as `reference.py` from fewer operations: the fast path where there is no GPU.

No row is sorted. Top-k selects its ids by groups. The threshold of a nucleus is not searched where
most draws fall inside: the race is run without it, and the winner is inside if the ids above it
have less than p of the mass; otherwise, and where the threshold itself is needed, masses are
accumulated in buckets. The race is decided by products, the arg max of log(1 - u) / mass: one
logarithm an id, and where few ids are left, only of those. For one request with few ids a call
costs more than its arithmetic: settings are read as Python numbers, and what is off is left out.
Legend: n requests, m some of them, V ids of the slice, M ids considered (all, or each request's
largest in descending order), L kept ids of all requests together, a positions ahead, b buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from cm3kernels.guided_sample.eager_filters import (
    Nucleus,
    at_least,
    higher,
    kth_value,
    largest,
    typical_ids,
)
from cm3kernels.guided_sample.eager_race import SMALL, Kept, race
from cm3kernels.guided_sample.reference import legal_ids, mix, only, reference_logits

#: Ids of all requests that are processed at once. More would not fit the cache, and their arrays
#: would come fresh from the system each time, which costs more than the arithmetic.
AT_ONCE = 32768
#: The p from which a nucleus is only checked for the winner of the race.
LEFT_TO_THE_WINNER = 0.8
#: How many runners-up may be tried in its place.
NUM_RUNNERS_UP = 3
#: Below this score a mass is so small that float64 doesn't represent it at full precision.
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
        """Those of some requests."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {
            name: None if value is None else value[index_m] for name, value in values.items()
        }
        return Settings(**some)


def guided_sample_eager(
    logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, first_id: int, **given: Any
) -> Tensor:
    """See `cm3kernels.guided_sample`."""
    n, V = len(stream_rows_nG), logits_SV.shape[1]
    narrow = any(
        all(0 < k <= V // 8 for k in _numbers(given[name]) or [0])
        for name in ("top_k_n", "plausible_top_k_n")
    )
    narrow = narrow or all(alpha > 0 for alpha in _numbers(given["plausible_alpha_n"]) or [0])
    # narrow: most of the work is on far fewer ids
    step = max(AT_ONCE * (4 if narrow else 1) // V, 1)
    # operations cost less in it; the sum below makes an ordinary tensor
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
    return column_n + first_id


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
    """Columns drawn for requests `first_request` and following, int64 [n]."""
    of, n, V = Settings(**settings), len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(
        n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n
    )
    mixed_nV, legal_nV = mix(
        logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV, first_request
    )
    mixed_nV, reference_nV = only(legal_nV, mixed_nV), None
    if (
        of.plausible_top_k_n is not None
        or of.plausible_top_p_n is not None
        or of.plausible_alpha_n is not None
    ):
        reference_nV = reference_logits(logits_SV, stream_rows_nG, reference_n)
        reference_nV = only(
            legal_nV, reference_nV if reference_nV.dtype == torch.float64 else reference_nV.float()
        )
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
    """Columns drawn, int64 [n], and their log-probabilities if requested, float64 [n].

    Args:
        mixed_nV, reference_nV: logits, -inf where an id is not legal. No reference: no plausibility
            filter.
        of: settings.
        first_id: id of column 0.
        look: whether a nucleus may be checked for the winner alone. Then there is no
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
    """Replace winners outside of the nucleus by the next in the race, and so on; returns the
    requests whose winner is still outside."""
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
    """`_draw`, with the greedy requests apart."""
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
    """Smallest plausible logit of the reference stream, [n, 1] (None: all are plausible), and the
    nucleus that it does not apply."""
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
        if max(ks) > 1:  # more than the legal ids: the smallest of them
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
    """Mixed logits, -inf where the reference's is below the floor; only the columns that are
    considered, where these are few."""
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
    """Temperature (above 0), top-k, top-p, min-p and typical ids. Leaves out a nucleus, the given
    one or that of top-p, where `look` allows it."""
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
