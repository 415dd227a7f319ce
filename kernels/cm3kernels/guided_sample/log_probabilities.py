"""Op `guided_log_probabilities`: the distribution that `guided_sample` draws from, differentiable.

The filters select ids without gradients, with the same functions as in `reference.py`: the set doesn't change with a
small change of the logits. Within it the result is a log-softmax of the mixed logits, and gradients reach every stream
of nonzero weight. Legend: S stream rows, n requests, G streams, V ids of the
slice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cm3kernels.guided_sample.cfg import differentiable_mix, only, refuse_empty
from cm3kernels.guided_sample.reference import filtered_scores

OP = "guided_log_probabilities"


def guided_log_probabilities(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    *,
    reference_n: Tensor | None = None,
    allowed_nV: Tensor | None = None,
    temperature_n: Tensor | None = None,
    top_k_n: Tensor | None = None,
    top_p_n: Tensor | None = None,
    plausible_top_k_n: Tensor | None = None,
    plausible_top_p_n: Tensor | None = None,
    plausible_alpha_n: Tensor | None = None,
    plausible_k_n: Tensor | None = None,
    min_p_n: Tensor | None = None,
    typical_p_n: Tensor | None = None,
    kept_nV: Tensor | None = None,
) -> Tensor:
    """Return the log-probabilities with which `guided_sample` draws each id, given the same arguments.

    Args:
        logits_SV, stream_rows_nG, weights_nG, reference_n, allowed_nV, temperature_n, top_k_n,
            top_p_n, plausible_top_k_n, plausible_top_p_n, plausible_alpha_n, plausible_k_n, min_p_n,
            typical_p_n: see `guided_sample`. Gradients flow to `logits_SV`.
        kept_nV: bool [n, V]; ids kept by the filters in an earlier call, which replace this call's filters
            (but not `allowed_nV` and the temperature), so that other weights are evaluated on the same set
            of ids. None: use the filters.

    Returns:
        float32 [n, V] (float64 for float64 logits), in nats; -inf for ids that are never drawn. For a
        request with temperature 0: 0 for the id that it takes; with `kept_nV`, its temperature counts as
        1.

    Raises:
        ValueError: a request has no legal id.

    Source: see `guided_sample`. Keeping the set of an earlier call: DeepSeek-V3.2 (2025), section 3.1
    ("Keep Sampling Mask").

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> rows, weights = torch.tensor([[0]]), torch.tensor([[1.0]])
    >>> guided_log_probabilities(logits, rows, weights, top_k_n=torch.tensor([2])).exp()
    tensor([[0.7311, 0.2689, 0.0000]])
    """
    filters = {
        "temperature_n": temperature_n,
        "top_k_n": top_k_n,
        "top_p_n": top_p_n,
        "plausible_top_k_n": plausible_top_k_n,
        "plausible_top_p_n": plausible_top_p_n,
        "plausible_alpha_n": plausible_alpha_n,
        "plausible_k_n": plausible_k_n,
        "min_p_n": min_p_n,
        "typical_p_n": typical_p_n,
    }
    if kept_nV is not None:
        wanted = (len(stream_rows_nG), logits_SV.shape[1])
        if kept_nV.dtype != torch.bool or kept_nV.shape != wanted:
            raise ValueError(
                f"{OP}: kept_nV is {list(kept_nV.shape)} {kept_nV.dtype}, must be bool {list(wanted)}"
            )
        allowed_nV = kept_nV if allowed_nV is None else kept_nV & allowed_nV
        filters = dict.fromkeys(filters)
    with torch.no_grad():
        scores_nV, greedy_n1 = filtered_scores(
            logits_SV.detach(),
            stream_rows_nG,
            weights_nG,
            reference_n=reference_n,
            allowed_nV=allowed_nV,
            **filters,
        )
        left_nV = scores_nV > -math.inf
        if bool(greedy_n1.any()):  # the lowest id on ties, as in a draw
            lowest_n1 = scores_nV.argmax(dim=1, keepdim=True)
            taken_nV = torch.zeros_like(left_nV).scatter_(1, lowest_n1, True)
            left_nV = torch.where(greedy_n1, taken_nV, left_nV)
        refuse_empty(left_nV.any(dim=1))
    mixed_nV = differentiable_mix(logits_SV, stream_rows_nG, weights_nG)
    if temperature_n is not None:
        temperature_n1 = temperature_n.to(mixed_nV.dtype)[:, None]
        mixed_nV = mixed_nV / torch.where(temperature_n1 > 0, temperature_n1, 1.0)
    return only(left_nV, mixed_nV).log_softmax(dim=1)
