"""Op `guided_sample`: its arguments, checked. Formula and shapes: README.md in this folder; the mixing of the
streams: `cfg.py`; implementations: `cm3kernels.dispatch`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cm3kernels.dispatch import GUIDED_SAMPLE as IMPLEMENTATIONS
from cm3kernels.dispatch import choose

__all__ = ["IMPLEMENTATIONS", "guided_sample"]

OP = "guided_sample"


def guided_sample(
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
    seed_n: Tensor,
    position_n: Tensor,
    first_id: int = 0,
    implementation: str = "auto",
    allowed_bits_nW: Tensor | None = None,
    allowed_from_n: Tensor | None = None,
    allowed_to_n: Tensor | None = None,
    out_tokens_S: Tensor | None = None,
    out_log_probability_n: Tensor | None = None,
    debug: bool = False,
) -> Tensor:
    """Mix the guidance streams of each request, filter, and draw one id: one call for a batch with any mixture of
    settings.

    Order: mix -> allowed ids -> plausible ids of the reference stream -> temperature -> top-k ->
    top-p -> min-p -> typical -> draw. A filter that is None is off for all requests. All
    implementations give the same tokens.

    Args:
        logits_SV: floating [S, V]; logits of every stream row over ids first_id..first_id+V-1. An id whose
            logit is not finite in the reference or in a stream of nonzero weight is never
            drawn.
        stream_rows_nG: int64 [n, G]; rows of each request's streams. -1: no such stream, for requests with
            fewer than G.
        weights_nG: floating [n, G]; the mixed logits are the weighted sum of the streams', rounded to
            float32. A weight of 0 removes the stream from the sum, but it may still be the
            reference.
        reference_n: int64 [n]; the stream (0..G-1) that decides plausibility. None: 0.
        allowed_nV: bool [n, V]. None: all. An id must pass this mask, the bits and the range.
        temperature_n: floating [n]; 0 picks the largest mixed logit (lowest id on a tie), whatever
            the later filters. None: 1.
        top_k_n, top_p_n: int64, floating [n]; applied to the mixed distribution, top-p after top-k. <= 0 or
            >= V, and >= 1, are off. Ties with the threshold are kept; never empty.
        plausible_top_k_n, plausible_top_p_n: the same, applied to the reference's allowed ids at
            temperature 1.
        plausible_alpha_n, plausible_k_n: floating, int64 [n]; reference probability >= alpha * its
            k-th largest. 0 is off.
        min_p_n: floating [n], 0..1; keeps, of the remaining ids, those with at least min_p times the largest
            probability. 0 is off.
        typical_p_n: floating [n]; keeps, of the remaining ids, renormalised, the smallest set with mass >=
            typical_p whose surprise is nearest to the entropy. >= 1 is off. Ties with the last are kept; never
            empty.
        seed_n, position_n: int64 [n]; the draw depends only on (seed, position, id). position in
            0..2**32-1.
        first_id: id of column 0.
        implementation: "auto" or a name in `IMPLEMENTATIONS`. "auto": "triton" on CUDA, else
            "eager".
        allowed_bits_nW: int32 [n, ceil(V / 32)]; column v is allowed where bit v % 32 of word v //
            32 is set.
        allowed_from_n, allowed_to_n: int64 [n]; ids allowed_from..allowed_to-1 are allowed, as ids of the whole
            vocabulary.
        out_tokens_S: int64 [S]; also receives the token of each request at all its stream rows; other rows
            are unchanged. No row may belong to two requests.
        out_log_probability_n: float32 [n]; receives the log-probability of the drawn token over the ids that
            the filters keep, at the request's temperature; 0 at
            temperature 0.
        debug: on CUDA, too, check that every request has a legal id (waits for the device).

    Returns:
        int64 [n] ids, including `first_id`. On CUDA the Triton kernels return -1 for a request without a legal
        id, since raising would mean waiting for the device; all others raise.

    Raises:
        ValueError: shapes, dtypes, devices or (on the CPU) values are invalid, a request has no legal id, or
            the implementation doesn't exist or can't run.

    Source: CM3leon paper, section 3.1, equations 1 to 3; the draw is this project's.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # conditional, unconditional
    >>> rows, weights = torch.tensor([[0, 1]]), torch.tensor([[3.0, -2.0]])
    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> options = {"temperature_n": torch.zeros(1), "seed_n": zero, "position_n": zero}
    >>> guided_sample(logits, rows, weights, **options, first_id=10)
    tensor([10])
    """
    settings = {
        "reference_n": reference_n,
        "temperature_n": temperature_n,
        "top_k_n": top_k_n,
        "top_p_n": top_p_n,
        "plausible_top_k_n": plausible_top_k_n,
        "plausible_top_p_n": plausible_top_p_n,
        "plausible_alpha_n": plausible_alpha_n,
        "plausible_k_n": plausible_k_n,
        "min_p_n": min_p_n,
        "typical_p_n": typical_p_n,
        "seed_n": seed_n,
        "position_n": position_n,
        "allowed_from_n": allowed_from_n,
        "allowed_to_n": allowed_to_n,
        "out_log_probability_n": out_log_probability_n,
    }
    _check_shapes(logits_SV, stream_rows_nG, weights_nG, settings)
    _check_masks(logits_SV, stream_rows_nG, allowed_nV, allowed_bits_nW, out_tokens_S, first_id)
    if logits_SV.device.type == "cpu":
        _check_values(logits_SV, stream_rows_nG, weights_nG, settings, out_tokens_S)
    run = choose(OP, implementation, IMPLEMENTATIONS, logits_SV)
    if len(stream_rows_nG) == 0:
        return stream_rows_nG.new_empty(0)
    given: dict[str, Any] = settings | {
        "allowed_nV": allowed_nV,
        "allowed_bits_nW": allowed_bits_nW,
        "first_id": first_id,
        "out_tokens_S": out_tokens_S,
        "debug": debug,
    }
    token_n: Tensor = run(logits_SV, stream_rows_nG, weights_nG, **given)
    return token_n


INTEGER = (
    "reference_n",
    "top_k_n",
    "plausible_top_k_n",
    "plausible_k_n",
    "seed_n",
    "position_n",
    "allowed_from_n",
    "allowed_to_n",
)
#: Settings with checked values -> whether a value is invalid, and what it must be.
WRONG: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature_n": (
        lambda value: not 0 <= value < math.inf,
        "must be 0 (picks the largest) or more, and finite",
    ),
    "min_p_n": (lambda value: not 0 <= value <= 1, "must be 0 (off) to 1"),
    "position_n": (lambda value: not 0 <= value < 2**32, "must be 0 to 2**32 - 1"),
    **dict.fromkeys(
        ("top_p_n", "plausible_top_p_n", "plausible_alpha_n", "typical_p_n"),
        (math.isnan, "must be a number"),
    ),
}


def _wrong(cause: str) -> ValueError:
    return ValueError(f"{OP}: {cause}")


# Formatting a message costs more than a check, so messages are formatted only on failure.


def _check_shapes(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    settings: dict[str, Tensor | None],
) -> None:
    if logits_SV.ndim != 2 or not logits_SV.is_floating_point() or logits_SV.shape[1] == 0:
        raise _wrong(
            f"logits_SV is {list(logits_SV.shape)} {logits_SV.dtype}, must be floating [stream "
            "rows, ids]"
        )
    if (
        stream_rows_nG.ndim != 2
        or stream_rows_nG.dtype != torch.int64
        or stream_rows_nG.shape[1] == 0
    ):
        raise _wrong(
            f"stream_rows_nG is {list(stream_rows_nG.shape)} {stream_rows_nG.dtype}, must be "
            "int64 [requests, streams]"
        )
    if weights_nG.shape != stream_rows_nG.shape or not weights_nG.is_floating_point():
        raise _wrong(
            f"weights_nG is {list(weights_nG.shape)} {weights_nG.dtype}, must be floating "
            f"{list(stream_rows_nG.shape)}"
        )
    device, shape = logits_SV.device, stream_rows_nG.shape[:1]
    _check_device("stream_rows_nG", stream_rows_nG, device)
    _check_device("weights_nG", weights_nG, device)
    for name, tensor in settings.items():
        if tensor is None:
            continue
        _check_device(name, tensor, device)
        wanted = (
            "int64"
            if name in INTEGER
            else "float32"
            if name == "out_log_probability_n"
            else "floating"
        )
        right = (
            tensor.is_floating_point()
            if wanted == "floating"
            else tensor.dtype == getattr(torch, wanted)
        )
        if not right or tensor.shape != shape:
            raise _wrong(
                f"{name} is {list(tensor.shape)} {tensor.dtype}, must be {wanted} {list(shape)}"
            )


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise _wrong(
            f"{name} is on {tensor.device}, logits_SV on {device}; all must be on one device"
        )


def _check_masks(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    allowed_nV: Tensor | None,
    allowed_bits_nW: Tensor | None,
    out_tokens_S: Tensor | None,
    first_id: int,
) -> None:
    n, (S, V) = len(stream_rows_nG), logits_SV.shape
    for name, tensor, dtype, shape in (
        ("allowed_nV", allowed_nV, torch.bool, (n, V)),
        ("allowed_bits_nW", allowed_bits_nW, torch.int32, (n, -(-V // 32))),
        ("out_tokens_S", out_tokens_S, torch.int64, (S,)),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype or tensor.shape != shape:
            wanted = f"{str(dtype).removeprefix('torch.')} {list(shape)}"
            raise _wrong(f"{name} is {list(tensor.shape)} {tensor.dtype}, must be {wanted}")
        _check_device(name, tensor, logits_SV.device)
    if first_id < 0:
        raise _wrong(f"first_id is {first_id}, must not be negative")
    if first_id + V > 2**31:
        raise _wrong(f"ids end at {first_id + V}, must end at or before 2**31")


def _check_values(
    logits_SV: Tensor,
    stream_rows_nG: Tensor,
    weights_nG: Tensor,
    settings: dict[str, Tensor | None],
    out_tokens_S: Tensor | None,
) -> None:
    """Run the checks that need no waiting for a device. On CUDA the kernels return no token for a request with an
    invalid row."""
    rows, num_rows, (_, G) = stream_rows_nG.tolist(), len(logits_SV), stream_rows_nG.shape
    for request in rows:
        if min(request) < -1 or max(request) >= num_rows:
            found = [row for request in rows for row in request]
            raise _wrong(
                f"stream_rows_nG has rows {min(found)}..{max(found)}, must be -1 (none) to "
                f"{num_rows - 1}"
            )
    if not all(math.isfinite(weight) for request in weights_nG.tolist() for weight in request):
        raise _wrong("weights_nG has a weight that is not finite")
    reference_n = settings["reference_n"]
    chosen = [0] * len(rows) if reference_n is None else reference_n.tolist()
    for place, (request, stream) in enumerate(zip(rows, chosen, strict=True)):
        if not 0 <= stream < G:
            raise _wrong(
                f"reference_n has streams {min(chosen)}..{max(chosen)}, must be 0 to {G - 1}"
            )
        if request[stream] < 0:
            raise _wrong(f"the reference stream of request {place} has row -1 (none)")
    for name, (wrong, must) in WRONG.items():
        value_n = settings[name]
        for value in () if value_n is None else value_n.tolist():
            if wrong(value):
                raise _wrong(f"{name} has {value}, {must}")
    if out_tokens_S is not None:
        owner: dict[int, int] = {}
        for place, request in enumerate(rows):
            for row in request:
                if row >= 0 and owner.setdefault(row, place) != place:
                    raise _wrong(
                        f"row {row} belongs to requests {owner[row]} and {place}, so "
                        "out_tokens_S can't receive both tokens"
                    )
