"""Guidance, filters and the draw, in plain tensor algebra: the definition that every faster
implementation must match.

The mixed logits are rounded to float32 once, so that "k-th largest" and "tie" mean the same on
every device; everything else is float64, so that the formula decides the token, and not rounding.
Legend: S stream rows, n requests, G streams, V ids of the slice, W = ceil(V / 32) words of a bit
mask, c = V / 4 counters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.guided_sample.philox import philox4x32

LARGEST = torch.finfo(torch.float32).max


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
    out_log_probability_n: Tensor | None,
) -> Tensor:
    """See `cm3kernels.guided_sample`."""
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
    # of equal scores argmax takes the lowest id
    token_n = (scores_nV + noise_nV * ~greedy_n1).argmax(dim=1)
    if out_log_probability_n is not None:
        log_probability_nV = torch.where(greedy_n1, 0.0, scores_nV.log_softmax(dim=1))
        out_log_probability_n.copy_(log_probability_nV.gather(1, token_n[:, None])[:, 0])
    return token_n + first_id


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
    """Scores of the ids that the filters keep, float64 [n, V], -inf for the others; and which requests
    are greedy, bool [n, 1]: of these only the largest scores are left. Softmax of the scores is what
    is drawn from."""
    mixed_nV, legal_nV = mix(logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV)
    reference_nV = only(legal_nV, reference_logits(logits_SV, stream_rows_nG, reference_n).double())

    threshold_n1 = torch.maximum(
        top_threshold(reference_nV, plausible_top_k_n, plausible_top_p_n),
        alpha_threshold(reference_nV, plausible_alpha_n, plausible_k_n),
    )
    mixed_nV = only(reference_nV >= threshold_n1, only(legal_nV, mixed_nV.double()))

    scores_nV, greedy_n1 = tempered(mixed_nV, temperature_n)
    threshold_n1 = top_threshold(scores_nV, top_k_n, top_p_n)
    if min_p_n is not None:  # the largest score is 0, and the normaliser cancels
        threshold_n1 = torch.maximum(threshold_n1, min_p_n.double()[:, None].log())
    threshold_n1 = torch.where(greedy_n1, 0.0, threshold_n1)  # the largest, whose score is 0
    scores_nV = only(scores_nV >= threshold_n1, scores_nV)
    if typical_p_n is not None:
        scores_nV = only(typical_ids(scores_nV, typical_p_n), scores_nV)
    return scores_nV, greedy_n1


def only(keep_nV: Tensor | None, values_nV: Tensor) -> Tensor:
    """The values, -inf where not kept. None keeps all."""
    return values_nV if keep_nV is None else torch.where(keep_nV, values_nV, -math.inf)


def legal_ids(
    n: int,
    V: int,
    first_id: int,
    allowed_nV: Tensor | None,
    allowed_bits_nW: Tensor | None,
    allowed_from_n: Tensor | None,
    allowed_to_n: Tensor | None,
) -> Tensor | None:
    """The mask, the bits and the range of allowed ids as one mask, bool [n, V]; None: all."""
    masks = [] if allowed_nV is None else [allowed_nV]
    if allowed_bits_nW is not None:
        column_V = torch.arange(V, device=allowed_bits_nW.device)
        masks.append((allowed_bits_nW[:, column_V // 32] >> (column_V % 32) & 1).bool())
    if allowed_from_n is not None or allowed_to_n is not None:
        bound = allowed_from_n if allowed_from_n is not None else allowed_to_n
        id_V = torch.arange(first_id, first_id + V, device=None if bound is None else bound.device)
        if allowed_from_n is not None:
            masks.append(id_V >= allowed_from_n[:, None])
        if allowed_to_n is not None:
            masks.append(id_V < allowed_to_n[:, None])
    if not masks:
        return None
    allowed = masks[0]
    for mask in masks[1:]:
        allowed = allowed & mask
    return allowed


def mix(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    reference_n: Tensor | None,
    allowed_nV: Tensor | None,
    first_request: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Weighted sum of the streams, float32; legal ids (None: all): allowed, and with a finite logit
    in the reference and in every present stream of nonzero weight.

    Raises:
        ValueError: a request has no legal id; the message has its number, counted from
            `first_request`.
    """
    rows = stream_rows_nG.tolist()
    if any(row < 0 for request in rows for row in request):
        weights_nG = weights_nG * (stream_rows_nG >= 0)
    streams = [_rows(logits_SV, list(stream_rows)) for stream_rows in zip(*rows, strict=True)]
    legal_nV, mixed_nV = allowed_nV, _weighted_sum(streams, weights_nG)
    # finite only if every logit is; if the sum overflows, this is just slower
    if not math.isfinite(mixed_nV.sum()):
        finite_nV = reference_logits(logits_SV, stream_rows_nG, reference_n).isfinite()
        for stream, values_nV in enumerate(streams):
            finite_nV &= values_nV.isfinite() | (weights_nG[:, stream, None] == 0)
        legal_nV = finite_nV if legal_nV is None else legal_nV & finite_nV
        mixed_nV = _weighted_sum(
            [values_nV.double().nan_to_num(0.0, 0.0, 0.0) for values_nV in streams], weights_nG
        )
        mixed_nV.clamp_(-LARGEST, LARGEST)
    if legal_nV is not None:
        refuse_empty(legal_nV.any(dim=1), first_request)
    return mixed_nV, legal_nV


def reference_logits(
    logits_SV: Tensor, stream_rows_nG: Tensor, reference_n: Tensor | None
) -> Tensor:
    """Logits of each request's reference stream, [n, V]; possibly a view."""
    rows, chosen = (
        stream_rows_nG.tolist(),
        [0] * len(stream_rows_nG) if reference_n is None else reference_n.tolist(),
    )
    return _rows(logits_SV, [request[stream] for request, stream in zip(rows, chosen, strict=True)])


def _rows(logits_SV: Tensor, rows: list[int]) -> Tensor:
    """Some rows [n, V]; row 0 for -1. Evenly spaced rows, as an engine passes them, are not
    copied."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and rows[0] >= 0 and rows == list(range(rows[0], rows[0] + step * len(rows), step)):
        return logits_SV[rows[0] : rows[-1] + 1 : step]
    return logits_SV.index_select(
        0, torch.tensor([max(row, 0) for row in rows], device=logits_SV.device)
    )


def refuse_empty(has_choice_n: Tensor, first_request: int = 0) -> None:
    """Raise `ValueError` for the first request without a legal id."""
    if not bool(has_choice_n.all()):
        request = first_request + int((~has_choice_n).int().argmax())
        raise ValueError(
            f"guided_sample: request {request} has no id that is both allowed and has a finite "
            "logit"
        )


def _weighted_sum(streams: list[Tensor], weights_nG: Tensor) -> Tensor:
    """In the streams' order, so that the sum is the same in any batch; float64, then rounded to
    float32."""
    if (
        len(streams) == 1
        and streams[0].dtype != torch.float64
        and weights_nG.dtype != torch.float64
    ):
        # a single product of float32 is rounded once anyway
        return streams[0].float() * weights_nG.float()
    weights_nG = weights_nG.double()
    mixed_nV = streams[0].to(torch.float64, copy=True).mul_(weights_nG[:, :1])
    for stream, values_nV in enumerate(streams[1:], start=1):
        mixed_nV.addcmul_(weights_nG[:, stream, None], values_nV.double())
    return mixed_nV.float()


def tempered(mixed_nV: Tensor, temperature_n: Tensor | None) -> tuple[Tensor, Tensor]:
    """(x - largest x) / temperature, and which requests are greedy, bool [n, 1]: temperature <= 0
    (divided by 1)."""
    scores_nV = mixed_nV - mixed_nV.amax(dim=1, keepdim=True)
    if temperature_n is None:
        return scores_nV, torch.zeros(len(mixed_nV), 1, dtype=torch.bool, device=mixed_nV.device)
    greedy_n1 = temperature_n[:, None] <= 0
    return scores_nV.div_(temperature_n.double()[:, None].masked_fill(greedy_n1, 1.0)), greedy_n1


def top_threshold(values_nV: Tensor, top_k_n: Tensor | None, top_p_n: Tensor | None) -> Tensor:
    """Smallest value [n, 1] kept by top-k, then by top-p of what top-k left; -inf where both are
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
    """Locally typical ids, bool [n, V]: the smallest set of mass >= typical_p in ascending order of
    |surprise - entropy|.

    Ties with the last one are kept; typical_p >= 1 is off; <= 0 keeps the nearest. Ids with score
    -inf have no mass, and come last. Source: Meister, Pimentel, Wiher, Cotterell, "Locally typical
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


def alpha_threshold(values_nV: Tensor, alpha_n: Tensor | None, k_n: Tensor | None) -> Tensor:
    """log(alpha * k-th largest probability) on unnormalised logits [n, 1]: the softmax's normaliser
    cancels. -inf where alpha is off (<= 0); never above the largest value. A k beyond the number of
    legal ids means the smallest of them."""
    if alpha_n is None:
        return torch.full_like(values_nV[:, :1], -math.inf)
    num_legal_n = (values_nV > -math.inf).sum(dim=1)
    k_n = torch.ones_like(num_legal_n) if k_n is None else k_n
    k_n = k_n.clamp(min=1).minimum(num_legal_n)
    descending_nV = values_nV.sort(dim=1, descending=True).values
    threshold_n1 = (
        descending_nV.gather(1, k_n[:, None] - 1) + alpha_n.double()[:, None].clamp(min=0).log()
    )
    return torch.minimum(threshold_n1, descending_nV[:, :1])


def log_survival(seed_n: Tensor, position_n: Tensor, first_id: int, num_ids: int) -> Tensor:
    """-E, float64 [n, V]: log(1 - u) of one uniform variate for each id.

    E is exponential and belongs to (seed, position, id) alone: word id % 4 of Philox4x32-10 under
    key `seed`, counter (id // 4, position, 0, 0); u = ((word >> 8) + 0.5) / 2**24. The arg min of
    E_v / p_v, in other words the arg max of log p_v - log E_v, is a draw of p.
    """
    counter_1c = torch.arange(
        first_id // 4, (first_id + num_ids - 1) // 4 + 1, device=seed_n.device
    )[None]
    skip = first_id % 4
    return log_survival_of(
        philox4x32(seed_n, counter_1c, position_n).flatten(1)[:, skip : skip + num_ids]
    )


def log_survival_of(bits: Tensor) -> Tensor:
    """log(1 - u) of 24 random bits, float64, in place. 1 - u is exact, so this is as good as
    log1p(-u), and faster."""
    return bits.mul_(-(2.0**-24)).add_(1.0 - 2.0**-25).log_()
