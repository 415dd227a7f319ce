"""Op `guided_sample`: validation and dispatch. Formula and shapes: README.md beside this file."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3kernels._dispatch import Implementation, choose, require
from cm3kernels.guided_sample.reference import guided_sample_reference

IMPLEMENTATIONS = {"reference": Implementation(lambda: guided_sample_reference)}


def guided_sample(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, *, reference_n: Tensor | None = None,
                  allowed_nV: Tensor | None = None, temperature_n: Tensor | None = None, top_k_n: Tensor | None = None,
                  top_p_n: Tensor | None = None, plausible_top_k_n: Tensor | None = None,
                  plausible_top_p_n: Tensor | None = None, plausible_alpha_n: Tensor | None = None,
                  plausible_k_n: Tensor | None = None, seed_n: Tensor, position_n: Tensor, first_id: int = 0,
                  implementation: str = "auto") -> Tensor:
    """Mix the guidance streams of each request, filter, draw one id: one call for a batch with every mixture of settings.

    Order: mix -> allowed ids -> plausible ids of the reference stream -> temperature -> top-k -> top-p -> draw.
    A filter given as None is off for all requests.

    Args:
        logits_SV: floating [S, V]; logits of every stream row over ids first_id..first_id+V-1. An id whose logit is not finite
            in the reference or in a stream of nonzero weight is never drawn.
        stream_rows_nG: int64 [n, G]; the rows of each request's streams.
        weights_nG: floating [n, G]; the mixed logits are the weighted sum of the streams'.
        reference_n: int64 [n]; which stream (0..G-1) decides plausibility. None: 0.
        allowed_nV: bool [n, V]. None: all.
        temperature_n: floating [n]; <= 0 takes the largest mixed logit (lowest id on a tie). None: 1.
        top_k_n, top_p_n: int64, floating [n]; of the mixed distribution, top-p after top-k. <= 0 or >= V, and >= 1, are off.
            Ties with the threshold are kept; never empty.
        plausible_top_k_n, plausible_top_p_n: the same, of the reference's allowed ids at temperature 1.
        plausible_alpha_n, plausible_k_n: floating, int64 [n]; reference probability >= alpha * its k-th largest. 0 is off.
        seed_n, position_n: int64 [n]; the draw depends on (seed, position, id) only. position in 0..2**32-1.
        first_id: id of column 0.
        implementation: "auto" or a name in `IMPLEMENTATIONS`.

    Returns:
        int64 [n] ids, `first_id` included.

    Raises:
        ValueError: shapes or dtypes that don't fit, a request without a legal id, or an implementation that isn't there.

    Source: CM3leon paper, section 3.1, equations 1 to 3; the draw is this project's.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # conditional, unconditional
    >>> rows, weights = torch.tensor([[0, 1]]), torch.tensor([[3.0, -2.0]])
    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> guided_sample(logits, rows, weights, temperature_n=torch.zeros(1), seed_n=zero, position_n=zero, first_id=10)
    tensor([10])
    """
    per_request = {"reference_n": reference_n, "temperature_n": temperature_n, "top_k_n": top_k_n, "top_p_n": top_p_n,
                   "plausible_top_k_n": plausible_top_k_n, "plausible_top_p_n": plausible_top_p_n,
                   "plausible_alpha_n": plausible_alpha_n, "plausible_k_n": plausible_k_n}
    _check(logits_SV, stream_rows_nG, weights_nG, allowed_nV, first_id,
           {**per_request, "seed_n": seed_n, "position_n": position_n})
    run = choose("guided_sample", implementation, IMPLEMENTATIONS, logits_SV)
    return run(logits_SV, stream_rows_nG, weights_nG, allowed_nV=allowed_nV, seed_n=seed_n, position_n=position_n,
               first_id=first_id, **per_request)


INTEGER = ("reference_n", "top_k_n", "plausible_top_k_n", "plausible_k_n", "seed_n", "position_n")


def _check(logits_SV: Tensor, stream_rows_nG: Tensor, weights_nG: Tensor, allowed_nV: Tensor | None,
           first_id: int, per_request: dict[str, Tensor | None]) -> None:
    op = "guided_sample"
    require(logits_SV.ndim == 2 and logits_SV.is_floating_point() and logits_SV.shape[1] > 0, op,
            f"logits_SV is {list(logits_SV.shape)} {logits_SV.dtype}, must be floating [stream rows, ids]")
    require(stream_rows_nG.ndim == 2 and stream_rows_nG.dtype == torch.int64 and stream_rows_nG.shape[1] > 0, op,
            f"stream_rows_nG is {list(stream_rows_nG.shape)} {stream_rows_nG.dtype}, must be int64 [requests, streams]")
    n = stream_rows_nG.shape[0]
    require(weights_nG.shape == stream_rows_nG.shape and weights_nG.is_floating_point(), op,
            f"weights_nG is {list(weights_nG.shape)} {weights_nG.dtype}, must be floating {list(stream_rows_nG.shape)}")
    if allowed_nV is not None:
        require(allowed_nV.dtype == torch.bool and allowed_nV.shape == (n, logits_SV.shape[1]), op,
                f"allowed_nV is {list(allowed_nV.shape)} {allowed_nV.dtype}, must be bool {[n, logits_SV.shape[1]]}")
    for name, tensor in per_request.items():
        if tensor is None:
            continue
        integer = name in INTEGER
        require(tensor.shape == (n,) and (tensor.dtype == torch.int64 if integer else tensor.is_floating_point()), op,
                f"{name} is {list(tensor.shape)} {tensor.dtype}, must be {'int64' if integer else 'floating'} [{n}]")
    require(first_id >= 0, op, f"first_id is {first_id}, must not be negative")
