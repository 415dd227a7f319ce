"""Filters and the draw, in plain tensor algebra, after the mixing of `cfg.py`: the definition that every
faster implementation must match.

The mixed logits are rounded to float32 once, so that "k-th largest" and "tie" mean the same on every
device; everything else is float64, so that the formula decides the token, not rounding.
Legend: S stream rows, n requests, G streams, V ids of the slice, W = ceil(V / 32) words of a bit
mask, c = V / 4 counters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.guided_sample.cfg import (
    alpha_threshold,
    legal_ids,
    mix,
    only,
    reference_logits,
    write_rows,
)
from cm3kernels.guided_sample.philox import log_survival


def guided_sample_reference(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    reference_n: Tensor | None,
    allowed_nV: Tensor | None,
    allowed_bits_nW: Tensor | None,
    allowed_from_n: Tensor | None,
    allowed_to_n: Tensor | None,
    temperature_n: Tensor | None,
    top_k_n: Tensor | None,
    top_p_n: Tensor | None,
    plausible_top_k_n: Tensor | None,
    plausible_top_p_n: Tensor | None,
    plausible_alpha_n: Tensor | None,
    plausible_k_n: Tensor | None,
    min_p_n: Tensor | None,
    typical_p_n: Tensor | None,
    seed_n: Tensor,
    position_n: Tensor,
    first_id: int,
    out_tokens_S: Tensor | None,
    out_log_probability_n: Tensor | None,
    debug: bool,
) -> Tensor:
    """See `cm3kernels.guided_sample`; everything is checked, regardless of `debug`."""
    n, V = len(stream_rows_nG), logits_SV.shape[1]
    allowed_nV = legal_ids(
        n, V, first_id, allowed_nV, allowed_bits_nW, allowed_from_n, allowed_to_n
    )
    scores_nV, greedy_n1 = filtered_scores(
        logits_SV,
        stream_rows_nG,
        weights_nG,
        reference_n=reference_n,
        allowed_nV=allowed_nV,
        temperature_n=temperature_n,
        top_k_n=top_k_n,
        top_p_n=top_p_n,
        plausible_top_k_n=plausible_top_k_n,
        plausible_top_p_n=plausible_top_p_n,
        plausible_alpha_n=plausible_alpha_n,
        plausible_k_n=plausible_k_n,
        min_p_n=min_p_n,
        typical_p_n=typical_p_n,
    )

    noise_nV = -(-log_survival(seed_n, position_n, first_id, V)).log()
    # argmax takes the lowest id on ties
    token_n = (scores_nV + noise_nV * ~greedy_n1).argmax(dim=1)
    if out_log_probability_n is not None:
        log_probability_nV = torch.where(greedy_n1, 0.0, scores_nV.log_softmax(dim=1))
        out_log_probability_n.copy_(log_probability_nV.gather(1, token_n[:, None])[:, 0])
    token_n += first_id
    if out_tokens_S is not None:
        write_rows(token_n, stream_rows_nG, out_tokens_S)
    return token_n


def filtered_scores(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    reference_n: Tensor | None,
    allowed_nV: Tensor | None,
    temperature_n: Tensor | None,
    top_k_n: Tensor | None,
    top_p_n: Tensor | None,
    plausible_top_k_n: Tensor | None,
    plausible_top_p_n: Tensor | None,
    plausible_alpha_n: Tensor | None,
    plausible_k_n: Tensor | None,
    min_p_n: Tensor | None,
    typical_p_n: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the scores of the ids that the filters keep, float64 [n, V], -inf for the others; and which requests
    are greedy, bool [n, 1]: for these only the largest scores are kept. The draw is from the softmax of the
    scores."""
    mixed_nV, legal_nV = mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV)
    reference_nV = reference_logits(logits_SV, stream_rows_nG, reference_n, legal_nV).double()

    threshold_n1 = torch.maximum(
        top_threshold(reference_nV, plausible_top_k_n, plausible_top_p_n),
        alpha_threshold(reference_nV, plausible_alpha_n, plausible_k_n),
    )
    mixed_nV = only(reference_nV >= threshold_n1, mixed_nV.double())

    scores_nV, greedy_n1 = tempered(mixed_nV, temperature_n)
    threshold_n1 = top_threshold(scores_nV, top_k_n, top_p_n)
    if min_p_n is not None:  # the largest score is 0, and the normaliser cancels
        threshold_n1 = torch.maximum(threshold_n1, min_p_n.double()[:, None].log())
    threshold_n1 = torch.where(greedy_n1, 0.0, threshold_n1)  # only the largest, whose score is 0
    scores_nV = only(scores_nV >= threshold_n1, scores_nV)
    if typical_p_n is not None:
        scores_nV = only(typical_ids(scores_nV, typical_p_n), scores_nV)
    return scores_nV, greedy_n1


def tempered(mixed_nV: Tensor, temperature_n: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (x - largest x) / temperature, and which requests are greedy, bool [n, 1]: temperature <= 0
    (divided by 1)."""
    scores_nV = mixed_nV - mixed_nV.amax(dim=1, keepdim=True)
    if temperature_n is None:
        return scores_nV, torch.zeros(len(mixed_nV), 1, dtype=torch.bool, device=mixed_nV.device)
    greedy_n1 = temperature_n[:, None] <= 0
    return scores_nV.div_(temperature_n.double()[:, None].masked_fill(greedy_n1, 1.0)), greedy_n1


def top_threshold(values_nV: Tensor, top_k_n: Tensor | None, top_p_n: Tensor | None) -> Tensor:
    """Return the smallest value [n, 1] kept by top-k, then by top-p of the rest; -inf where both are
    off.

    Ties with the threshold are kept; top_k <= 0 or >= V and top_p >= 1 are off; top_p <= 0 keeps
    the largest.
    """
    descending_nV = (
        values_nV.sort(dim=1, descending=True).values
        if top_k_n is not None or top_p_n is not None
        else values_nV
    )
    threshold_n1 = torch.full_like(values_nV[:, :1], -math.inf)
    if top_k_n is not None:
        off_n1 = ((top_k_n <= 0) | (top_k_n >= values_nV.shape[1]))[:, None]
        k_n1 = top_k_n[:, None].masked_fill(off_n1, 1)
        threshold_n1 = descending_nV.gather(1, k_n1 - 1).masked_fill(off_n1, -math.inf)
    if top_p_n is not None:
        p_n1 = top_p_n.double()[:, None]
        mass_nV = (
            only(descending_nV >= threshold_n1, descending_nV - descending_nV[:, :1])
            .exp()
            .cumsum(dim=1)
        )
        last_n1 = (
            (mass_nV < p_n1 * mass_nV[:, -1:])
            .sum(dim=1, keepdim=True)
            .clamp(max=values_nV.shape[1] - 1)
        )
        nucleus_n1 = descending_nV.gather(1, last_n1).masked_fill(p_n1 >= 1, -math.inf)
        threshold_n1 = torch.maximum(threshold_n1, nucleus_n1)
    return threshold_n1


def typical_ids(scores_nV: Tensor, typical_p_n: Tensor) -> Tensor:
    """Return the locally typical ids, bool [n, V]: the smallest set with mass >= typical_p in ascending order of
    |surprise - entropy|.

    Ties with the last one are kept; typical_p >= 1 is off; <= 0 keeps the nearest. Ids with score -inf
    have no mass and come last. Source: Meister, Pimentel, Wiher, Cotterell, "Locally typical
    sampling" (2022).
    """
    log_probability_nV = scores_nV.log_softmax(dim=1)
    probability_nV = log_probability_nV.exp()
    entropy_n1 = -(probability_nV * log_probability_nV).nansum(dim=1, keepdim=True)
    distance_nV = (-log_probability_nV - entropy_n1).abs()
    ascending_nV, order_nV = distance_nV.sort(dim=1)
    mass_nV = probability_nV.gather(1, order_nV).cumsum(dim=1)
    p_n1 = typical_p_n.double()[:, None]
    last_n1 = (
        (mass_nV < p_n1 * mass_nV[:, -1:])
        .sum(dim=1, keepdim=True)
        .clamp(max=scores_nV.shape[1] - 1)
    )
    return (distance_nV <= ascending_nV.gather(1, last_n1)) | (p_n1 >= 1)
