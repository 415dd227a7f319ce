"""Classifier-free guidance: mixes the streams' logits, and selects plausible ids.

    x_v = float32(sum_g weights[g] * logits[stream_rows[g], v])

Guidance u + s (c - u) has the weights (s, 1 - s) on the streams (c, u); editing (s, s_picture - s, 1 - s_picture);
contrastive decoding and CD-K (1 / T_expert, -1 / T_amateur), restricted to the expert's ids that pass
`alpha_threshold`. The sum is rounded to float32
once, so that ties mean the same on every device. `_tile.py` does the same in the Triton kernels.

Source: CM3leon paper, section 3.1, equations 1 to 3. Legend: S stream rows, n requests, G streams, V ids of the slice,
W = ceil(V / 32) words of a bit mask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def mix(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    reference_n: Tensor | None,
    allowed_nV: Tensor | None,
    first_request: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Return the weighted sum of the streams, float32, -inf for ids that aren't legal; and the legal ids (None: all):
    allowed, and with a finite logit in the reference and in every present stream of nonzero weight.

    Raises:
        ValueError: a request has no legal id; the message states its number, counted from
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
    return only(legal_nV, mixed_nV), legal_nV


def _weighted_sum(streams: list[Tensor], weights_nG: Tensor) -> Tensor:
    """Sum in the streams' order, so that the sum is the same in any batch; in float64, then rounded to
    float32."""
    if (
        len(streams) == 1
        and streams[0].dtype != torch.float64
        and weights_nG.dtype != torch.float64
    ):
        # a single product of float32 is rounded only once anyway
        return streams[0].float() * weights_nG.float()
    weights_nG = weights_nG.double()
    mixed_nV = streams[0].to(torch.float64, copy=True).mul_(weights_nG[:, :1])
    for stream, values_nV in enumerate(streams[1:], start=1):
        mixed_nV.addcmul_(weights_nG[:, stream, None], values_nV.double())
    return mixed_nV.float()


def differentiable_mix(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor) -> Tensor:
    """Same as `mix` with gradients, [n, V]: rounded in the same way, and float64 for float64.

    Non-finite logits count as 0: their ids are not kept.
    """
    exact = logits_SV.dtype == torch.float64
    weights_nG = weights_nG.double() * (stream_rows_nG >= 0)
    mixed_nV = torch.zeros(1, dtype=torch.float64, device=logits_SV.device)
    for stream in range(stream_rows_nG.shape[1]):
        values_nV = logits_SV[stream_rows_nG[:, stream].clamp(min=0)].double()
        values_nV = torch.where(values_nV.isfinite(), values_nV, 0.0)
        mixed_nV = mixed_nV + weights_nG[:, stream, None] * values_nV
    return mixed_nV if exact else mixed_nV.clamp(-LARGEST, LARGEST).float()


def reference_logits(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    reference_n: Tensor | None,
    legal_nV: Tensor | None = None,
) -> Tensor:
    """Return the logits of each request's reference stream, [n, V], -inf for ids that aren't legal; possibly a view."""
    rows, chosen = (
        stream_rows_nG.tolist(),
        [0] * len(stream_rows_nG) if reference_n is None else reference_n.tolist(),
    )
    return only(
        legal_nV,
        _rows(logits_SV, [request[stream] for request, stream in zip(rows, chosen, strict=True)]),
    )


def _rows(logits_SV: Tensor, rows: list[int]) -> Tensor:
    """Return some rows [n, V]; row 0 for -1. Evenly spaced rows, as passed by an engine, are not
    copied."""
    step = rows[1] - rows[0] if len(rows) > 1 else 1
    if step > 0 and rows[0] >= 0 and rows == list(range(rows[0], rows[0] + step * len(rows), step)):
        return logits_SV[rows[0] : rows[-1] + 1 : step]
    return logits_SV.index_select(
        0, torch.tensor([max(row, 0) for row in rows], device=logits_SV.device)
    )


def alpha_threshold(values_nV: Tensor, alpha_n: Tensor | None, k_n: Tensor | None) -> Tensor:
    """Return log(alpha * k-th largest probability) on unnormalised logits [n, 1]: the softmax's normaliser cancels.
    -inf where alpha is off (<= 0); never above the largest value. A k above the number of legal ids means the
    smallest of them."""
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


def only(keep_nV: Tensor | None, values_nV: Tensor) -> Tensor:
    """Return the values, -inf where not kept. None keeps all."""
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
    """Combine the mask, the bits and the range of allowed ids in one mask, bool [n, V]; None: all."""
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


def write_rows(token_n: Tensor, stream_rows_nG: Tensor, out_tokens_S: Tensor) -> None:
    """Write each token to all stream rows of its request."""
    there_nG = stream_rows_nG >= 0
    out_tokens_S[stream_rows_nG[there_nG]] = token_n[:, None].expand_as(stream_rows_nG)[there_nG]


def refuse_empty(has_choice_n: Tensor, first_request: int = 0) -> None:
    """Raise `ValueError` for the first request without a legal id."""
    if not bool(has_choice_n.all()):
        request = first_request + int((~has_choice_n).int().argmax())
        raise ValueError(
            f"guided_sample: request {request} has no id that is both allowed and has a finite "
            "logit"
        )
