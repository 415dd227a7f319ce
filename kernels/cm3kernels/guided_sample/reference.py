"""Guidance, filters and the draw, in plain tensor algebra: the meaning of every faster implementation.

Everything after the logits is float64, so that the drawn token is the formula's and not rounding's. A filter that is off in
all rows costs nothing; nothing loops over rows.
Legend: S stream rows, n requests, G streams, V ids of the slice, c = V / 4 counters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.guided_sample.philox import MASK, philox4x32

#: Sorted candidates looked at first for top-p; more only where their mass does not reach p.
FIRST_CANDIDATES = 128


def guided_sample_reference(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, reference_n: Tensor | None,
                            allowed_nV: Tensor | None, temperature_n: Tensor | None, top_k_n: Tensor | None,
                            top_p_n: Tensor | None, plausible_top_k_n: Tensor | None, plausible_top_p_n: Tensor | None,
                            plausible_alpha_n: Tensor | None, plausible_k_n: Tensor | None, seed_n: Tensor,
                            position_n: Tensor, first_id: int) -> Tensor:
    """See `cm3kernels.guided_sample`."""
    mixed_nV, reference_nV, legal_nV = _mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV)

    plausible = [_top_threshold(reference_nV, plausible_top_k_n, plausible_top_p_n),
                 _alpha_threshold(reference_nV, plausible_alpha_n, plausible_k_n)]
    for threshold_n1 in plausible:
        if threshold_n1 is not None:
            legal_nV = _both(legal_nV, reference_nV >= threshold_n1)
    scores_nV = _only(legal_nV, mixed_nV)

    greedy_n1 = None
    if temperature_n is not None:
        greedy_n1 = temperature_n[:, None] <= 0
        scores_nV = scores_nV / temperature_n.double()[:, None].masked_fill(greedy_n1, 1.0)
    threshold_n1 = _top_threshold(scores_nV, top_k_n, top_p_n)
    if threshold_n1 is not None:
        scores_nV = _only(scores_nV >= threshold_n1, scores_nV)

    if greedy_n1 is None or not bool(greedy_n1.all()):
        noise_nV = race_noise(seed_n, position_n, first_id, scores_nV.shape[1])
        scores_nV = scores_nV + (noise_nV if greedy_n1 is None else noise_nV * ~greedy_n1)
    return scores_nV.argmax(dim=1) + first_id  # of equal scores argmax takes the lowest id


def _both(first_nV: Tensor | None, second_nV: Tensor | None) -> Tensor | None:
    """And of two masks; None is all true."""
    if first_nV is None or second_nV is None:
        return second_nV if first_nV is None else first_nV
    return first_nV & second_nV


def _only(keep_nV: Tensor | None, values_nV: Tensor) -> Tensor:
    """The values, -inf where they are not kept."""
    return values_nV if keep_nV is None else torch.where(keep_nV, values_nV, -math.inf)


def race_noise(seed_n: Tensor, position_n: Tensor, first_id: int, num_ids: int) -> Tensor:
    """-log E of one exponential variate for each id, float64 [n, V]: the arg max of logits + noise is a draw of softmax(logits).

    E belongs to (seed, position, id) alone: word id % 4 of Philox4x32-10 under key `seed`, counter (id // 4, position, 0, 0);
    u = ((word >> 8) + 0.5) / 2**24, E = -log(1 - u).
    """
    first_counter, last_counter = first_id // 4, (first_id + num_ids - 1) // 4
    counters_c = torch.arange(first_counter, last_counter + 1, device=seed_n.device)
    words_nV = philox4x32(seed_n, counters_c, position_n & MASK).flatten(1)
    skip = first_id - 4 * first_counter
    # 1 - u is exact in float64, so log(1 - u) is as good as log1p(-u), and faster.
    survival_nV = (words_nV[:, skip:skip + num_ids] >> 8).double().mul_(-(2.0**-24)).add_(1.0 - 2.0**-25)
    return survival_nV.log_().neg_().log_().neg_()


def _mix(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, reference_n: Tensor | None,
         allowed_nV: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted sum of the streams; the reference stream with illegal ids at -inf; legal ids (None: all): allowed, and with a
    finite logit in the reference and in every stream of nonzero weight (0 * inf and inf - inf never enter the sum)."""
    n, G = stream_rows_nG.shape
    streams_nGV = logits_SV.index_select(0, stream_rows_nG.flatten()).double().view(n, G, -1)
    if reference_n is None:
        reference_nV = streams_nGV[:, 0]
    else:
        reference_nV = streams_nGV[torch.arange(n, device=reference_n.device), reference_n]
    legal_nV = allowed_nV
    if not bool(streams_nGV.sum().isfinite()):  # the sum is finite only if every logit is
        finite_nGV = streams_nGV.isfinite()
        finite_nV = (finite_nGV | (weights_nG == 0)[..., None]).all(dim=1) & reference_nV.isfinite()
        legal_nV = _both(legal_nV, finite_nV)
        streams_nGV = torch.where(finite_nGV, streams_nGV, 0.0)
    if legal_nV is not None:
        empty_n = ~legal_nV.any(dim=1)
        if bool(empty_n.any()):
            raise ValueError(f"guided_sample: request {int(empty_n.int().argmax())} has no id that is both allowed and of a "
                             "finite logit")
    mixed_nV = torch.zeros_like(reference_nV)
    for stream, weight_n in enumerate(weights_nG.double().unbind(1)):  # in this order: the sum is the same in any batch
        mixed_nV += weight_n[:, None] * streams_nGV[:, stream]
    return mixed_nV, _only(legal_nV, reference_nV), legal_nV


def _top_threshold(values_nV: Tensor, top_k_n: Tensor | None, top_p_n: Tensor | None) -> Tensor | None:
    """Smallest kept value [n, 1] of top-k, then top-p of what top-k left; None where both are off in all rows.

    Ties with the threshold are kept; top_k <= 0 and top_p >= 1 are off; top_p <= 0 keeps the largest.
    """
    k_on = top_k_n is not None and bool(((top_k_n > 0) & (top_k_n < values_nV.shape[1])).any())
    p_on = top_p_n is not None and bool((top_p_n < 1).any())
    threshold_n1 = _kth_largest(values_nV, top_k_n) if k_on and top_k_n is not None else None
    if not p_on or top_p_n is None:
        return threshold_n1
    if threshold_n1 is None:
        return _nucleus_threshold(values_nV, top_p_n)
    return torch.maximum(threshold_n1, _nucleus_threshold(_only(values_nV >= threshold_n1, values_nV), top_p_n))


def _kth_largest(values_nV: Tensor, k_n: Tensor) -> Tensor:
    """k-th largest value of each row [n, 1]; -inf where k is off (<= 0 or >= V) or fewer than k values are legal."""
    off_n1 = ((k_n <= 0) | (k_n >= values_nV.shape[1]))[:, None]
    k_n1 = k_n.to(torch.int64)[:, None].masked_fill(off_n1, 1)
    largest = values_nV.topk(int(k_n1.max()), dim=1).values
    return largest.gather(1, k_n1 - 1).masked_fill(off_n1, -math.inf)


def _nucleus_threshold(values_nV: Tensor, p_n: Tensor) -> Tensor:
    """Smallest value [n, 1] of the smallest set of largest values whose softmax mass reaches p; -inf where p >= 1."""
    V = values_nV.shape[1]
    p_n1 = p_n.double()[:, None]
    off_n1 = p_n1 >= 1
    highest_n1 = values_nV.amax(dim=1, keepdim=True)
    wanted_n1 = p_n1 * (values_nV - highest_n1).exp_().sum(dim=1, keepdim=True)
    num_candidates = min(FIRST_CANDIDATES, V)
    while True:
        largest = values_nV.topk(num_candidates, dim=1).values
        mass = (largest - highest_n1).exp_().cumsum_(dim=1)
        if num_candidates == V or bool(((mass[:, -1:] >= wanted_n1) | off_n1).all()):
            break
        num_candidates = min(4 * num_candidates, V)
    last_n1 = (mass < wanted_n1).sum(dim=1, keepdim=True).clamp_(max=num_candidates - 1)
    return largest.gather(1, last_n1).masked_fill(off_n1, -math.inf)


def _alpha_threshold(values_nV: Tensor, alpha_n: Tensor | None, k_n: Tensor | None) -> Tensor | None:
    """log(alpha * k-th largest probability) on unnormalised logits [n, 1]: the softmax's normaliser cancels. -inf where alpha is
    off (<= 0); never above the largest value; None where it is off in all rows."""
    if alpha_n is None or not bool((alpha_n > 0).any()):
        return None
    V = values_nV.shape[1]
    k_n = torch.ones_like(alpha_n, dtype=torch.int64) if k_n is None else k_n.clamp(min=1)
    # A k past the legal ids means the smallest of them, not -inf.
    num_legal_n = (values_nV > -math.inf).sum(dim=1)
    k_n1 = torch.minimum(k_n.to(torch.int64).clamp(max=V), num_legal_n)[:, None]
    kth_n1 = values_nV.topk(int(k_n1.max()), dim=1).values.gather(1, k_n1 - 1)
    threshold_n1 = kth_n1 + alpha_n.double()[:, None].clamp(min=0).log()
    return torch.minimum(threshold_n1, values_nV.amax(dim=1, keepdim=True))
