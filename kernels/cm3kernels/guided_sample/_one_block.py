"""Path A: all ids of a request fit into one program, in registers. One launch, one program for each
request."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.guided_sample._tile import (
    MASS_ONE,
    NEVER,
    allowed_of,
    columns_of,
    inverse_temperature,
    kth_key,
    lowest_at,
    mass_of,
    min_p_key,
    mix_tile,
    moment_of,
    nearness_of,
    nucleus_key,
    race_tile,
    range_of,
    ratio_key,
    value_of,
)


@triton.jit
def top_floor(key, num_ids, top_k, top_p, request, inverse):
    """Smallest key kept by top-k, then by top-p of what top-k left."""
    floor, high = range_of(key)
    if top_k is not None:
        k = tl.load(top_k + request)
        if (k > 0) & (k < num_ids):
            floor = kth_key(key, k, floor, high)
    if top_p is not None:
        p = tl.load(top_p + request).to(tl.float64)
        if p < 1.0:
            mass = mass_of(key, floor, value_of(high), inverse)
            floor = nucleus_key(key, mass, p, floor, high)
    return floor


@triton.jit
def plausible_floor(key, num_ids, top_k, top_p, alpha, alpha_k, request):
    """Smallest plausible key of the reference stream."""
    floor = top_floor(key, num_ids, top_k, top_p, request, 1.0)
    if alpha is not None:
        threshold = tl.load(alpha + request).to(tl.float64)
        if threshold > 0.0:
            low, high = range_of(key)
            kth = high
            if alpha_k is not None:
                kth = kth_key(key, tl.maximum(tl.load(alpha_k + request), 1), low, high)
            floor = tl.maximum(floor, ratio_key(kth, high, threshold, 1.0))
    return floor


@triton.jit
def typical_keys(key, floor, high, inverse, p, again):
    """The keys of the typical ids among those from `floor` on; `NEVER` for others. Nearness is
    recomputed for each sum: kept in registers, it would be too much. So would masses until the mean is
    known: `again` is a 0 that the compiler doesn't know, so it computes them twice."""
    highest = value_of(high)
    mass = mass_of(key, floor, highest, inverse)
    total = tl.sum(mass).to(tl.float64)
    mean = (tl.sum(moment_of(key, mass, highest, inverse)).to(tl.float64) / total).to(tl.float32)
    highest = value_of(high | again)
    mass = mass_of(key, floor, highest, inverse)
    furthest, nearest = range_of(
        tl.where(mass > 0, nearness_of(key, highest, inverse, mean), NEVER)
    )
    below, above = furthest.to(tl.int64), nearest.to(tl.int64)
    while below < above:
        middle = (below + above + 1) >> 1
        near = nearness_of(key, highest, inverse, mean) >= middle.to(tl.int32)
        enough = tl.sum(tl.where(near, mass, 0)).to(tl.float64) >= p * total
        below = tl.where(enough, middle, below)
        above = tl.where(enough, above, middle - 1)
    return tl.where(nearness_of(key, highest, inverse, mean) >= below.to(tl.int32), key, NEVER)


@triton.jit
def store_token(request, token, tokens, stream_rows, row_tokens, num_rows, G: tl.constexpr):
    """Store the token for the request and at the rows of its streams."""
    tl.store(tokens + request, token)
    if row_tokens is not None:
        for g in tl.static_range(G):
            row = tl.load(stream_rows + request * G + g)
            tl.store(row_tokens + row, token, mask=(row >= 0) & (row < num_rows))


@triton.jit
def log_probability(drop, mass, temperature, request):
    """(x - largest x) / temperature - log of the kept mass, float32; 0 at temperature 0."""
    exact, kept = drop.to(tl.float64), mass.to(tl.float64) / MASS_ONE
    if temperature is not None:
        given = tl.load(temperature + request).to(tl.float64)
        exact = exact / tl.where(given > 0.0, given, 1.0)
        kept = tl.where(given > 0.0, kept, 1.0)
    return (exact - tl.log(kept)).to(tl.float32)


@triton.jit(do_not_specialize=["first_id", "first_counter", "num_rows"])
def one_block_kernel(
    logits,
    stream_rows,
    weights,
    reference,
    allowed,
    allowed_bits,
    allowed_from,
    allowed_to,
    temperature,
    top_k,
    top_p,
    plausible_top_k,
    plausible_top_p,
    plausible_alpha,
    plausible_k,
    min_p,
    typical_p,
    seeds,
    positions,
    tokens,
    row_tokens,
    log_probabilities,
    num_rows,
    num_ids,
    num_words,
    row_stride,
    first_id,
    first_counter,
    G: tl.constexpr,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
):
    request = tl.program_id(0)
    column = columns_of(0, SHIFT, C, True)
    legal = allowed_of(
        request,
        column,
        num_ids,
        num_words,
        first_id,
        allowed,
        allowed_bits,
        allowed_from,
        allowed_to,
    )
    key, conditional = mix_tile(
        request,
        column,
        legal,
        logits,
        stream_rows,
        weights,
        reference,
        num_rows,
        num_ids,
        row_stride,
        G,
    )
    if plausible_top_k is not None or plausible_top_p is not None or plausible_alpha is not None:
        floor = plausible_floor(
            conditional,
            num_ids,
            plausible_top_k,
            plausible_top_p,
            plausible_alpha,
            plausible_k,
            request,
        )
        key = tl.where(conditional >= floor, key, NEVER)

    # 0, since the grid has no second axis, but the compiler doesn't know: it computes columns and counters again for
    # the race instead of keeping them in registers until then.
    again = tl.program_id(1)
    column = columns_of(again, SHIFT, C, True)
    high = tl.max(key)
    inverse = inverse_temperature(temperature, request)
    greedy = False
    if temperature is not None:
        greedy = tl.load(temperature + request) <= 0.0
    mass = tl.full([], 0, tl.int64)
    if greedy:
        winner = lowest_at(key, high, column)
    else:
        floor = top_floor(key, num_ids, top_k, top_p, request, inverse)
        if min_p is not None:
            floor = min_p_key(floor, high, min_p, temperature, request)
        if typical_p is not None:
            p = tl.load(typical_p + request).to(tl.float64)
            if p < 1.0:
                key = typical_keys(key, floor, high, inverse, p, again)
        kept = (key >= floor) & (key > NEVER)
        winner, _ = race_tile(
            key,
            kept,
            column,
            again,
            first_counter,
            first_id,
            value_of(high),
            inverse,
            temperature,
            request,
            tl.load(seeds + request),
            tl.load(positions + request),
            WINDOW,
            SHIFT,
            C,
            True,
        )
        if log_probabilities is not None:
            mass = tl.sum(mass_of(key, floor, value_of(high), inverse))
    token = tl.where(high > NEVER, (winner + first_id).to(tl.int64), -1)
    store_token(request, token, tokens, stream_rows, row_tokens, num_rows, G)
    if log_probabilities is not None:
        drop = value_of(tl.max(tl.where(column == winner, key, NEVER))) - value_of(high)
        tl.store(log_probabilities + request, log_probability(drop, mass, temperature, request))
