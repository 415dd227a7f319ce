"""Path B: more ids than fit into one program. Four launches: keys of all tiles -> thresholds of
each request -> the winner of each tile -> the winner. Each id is computed by path A's code, so the
tokens are the same, too.

Scratch, P = tiles x tile, at least V: keys and reference keys int32 [n, P]; their range int32 [n,
tiles]; state int32 [n, 5]: reference floor, floor, largest key, smallest typical nearness, mean
surprise (a float32's bits); winners (column, float64 score, kept mass) [n, tiles].
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.guided_sample._one_block import log_probability, store_token
from cm3kernels.guided_sample._sweep import (
    NUMBER,
    load_gated,
    swept_floor,
    swept_range,
    swept_search,
    swept_typical,
)
from cm3kernels.guided_sample._tile import (
    ABOVE,
    NEVER,
    allowed_of,
    columns_of,
    inverse_temperature,
    lowest_at,
    mass_of,
    min_p_key,
    mix_tile,
    nearness_of,
    race_tile,
    range_of,
    ratio_key,
    value_of,
)


@triton.jit(do_not_specialize=["first_id", "num_rows", "num_tiles"])
def mix_kernel(
    logits,
    stream_rows,
    weights,
    reference,
    allowed,
    allowed_bits,
    allowed_from,
    allowed_to,
    keys,
    references,
    lows,
    highs,
    num_rows,
    num_ids,
    num_words,
    row_stride,
    first_id,
    num_tiles,
    G: tl.constexpr,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
):
    """Keys of one tile, and the range of those that are searched first: the reference's where they
    are needed."""
    request, tile = tl.program_id(0), tl.program_id(1)
    column = columns_of(tile * C, SHIFT, C, False)
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
    place = request.to(tl.int64) * num_tiles * (4 * C) + column + SHIFT
    tl.store(keys + place, key)
    if references is not None:
        tl.store(references + place, conditional)
        low, high = range_of(conditional)
    else:
        low, high = range_of(key)
    tl.store(lows + request.to(tl.int64) * num_tiles + tile, low)
    tl.store(highs + request.to(tl.int64) * num_tiles + tile, high)


@triton.jit(do_not_specialize=["num_tiles"])
def select_kernel(
    keys,
    references,
    lows,
    highs,
    temperature,
    top_k,
    top_p,
    plausible_top_k,
    plausible_top_p,
    plausible_alpha,
    plausible_k,
    min_p,
    typical_p,
    state,
    num_ids,
    num_tiles,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
):
    """Thresholds of one request."""
    request = tl.program_id(0)
    place = request.to(tl.int64) * num_tiles
    tile = tl.arange(0, TILES)
    low = tl.min(tl.load(lows + place + tile, mask=tile < num_tiles, other=ABOVE))
    high = tl.max(tl.load(highs + place + tile, mask=tile < num_tiles, other=NEVER))
    keys += place * WIDTH
    gate_floor = tl.full([], NEVER, tl.int32)
    if references is not None:
        references += place * WIDTH
        gate_floor = swept_floor(
            references,
            None,
            0,
            low,
            high,
            num_ids,
            plausible_top_k,
            plausible_top_p,
            request,
            1.0,
            num_tiles,
            WIDTH,
        )
        if plausible_alpha is not None:
            alpha = tl.load(plausible_alpha + request).to(tl.float64)
            if alpha > 0.0:
                kth = high
                if plausible_k is not None:
                    k = tl.maximum(tl.load(plausible_k + request), 1).to(tl.float64)
                    kth = swept_search(
                        references,
                        None,
                        0,
                        low,
                        value_of(high),
                        1.0,
                        0.0,
                        k,
                        low,
                        high,
                        num_tiles,
                        WIDTH,
                        NUMBER,
                    )
                    kth, _ = swept_range(references, None, 0, kth, num_tiles, WIDTH)
                gate_floor = tl.maximum(gate_floor, ratio_key(kth, high, alpha, 1.0))
        low, high = swept_range(keys, references, gate_floor, NEVER, num_tiles, WIDTH)
    inverse = inverse_temperature(temperature, request)
    floor = high
    greedy = False
    if temperature is not None:
        greedy = tl.load(temperature + request) <= 0.0
    near, mean = tl.full([], NEVER, tl.int32), tl.full([], 0.0, tl.float32)
    if greedy == 0:
        floor = swept_floor(
            keys,
            references,
            gate_floor,
            low,
            high,
            num_ids,
            top_k,
            top_p,
            request,
            inverse,
            num_tiles,
            WIDTH,
        )
        if min_p is not None:
            floor = min_p_key(floor, high, min_p, temperature, request)
        if typical_p is not None:
            p = tl.load(typical_p + request).to(tl.float64)
            if p < 1.0:
                near, mean = swept_typical(
                    keys, references, gate_floor, floor, high, inverse, p, num_tiles, WIDTH
                )
    tl.store(state + request * 5, gate_floor)
    tl.store(state + request * 5 + 1, floor)
    tl.store(state + request * 5 + 2, high)
    tl.store(state + request * 5 + 3, near)
    tl.store(state + request * 5 + 4, mean.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["first_id", "first_counter", "num_tiles"])
def race_kernel(
    keys,
    references,
    state,
    temperature,
    typical_p,
    seeds,
    positions,
    columns,
    scores,
    masses,
    first_id,
    first_counter,
    num_tiles,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """The winner of one tile, and the mass that the filters keep there."""
    request, tile = tl.program_id(0), tl.program_id(1)
    column = columns_of(tile * C, SHIFT, C, False)
    place = request.to(tl.int64) * num_tiles * (4 * C) + column + SHIFT
    gate_floor, floor = tl.load(state + request * 5), tl.load(state + request * 5 + 1)
    high = tl.load(state + request * 5 + 2)
    key = load_gated(keys, references, gate_floor, place)
    inverse = inverse_temperature(temperature, request)
    kept = (key >= floor) & (key > NEVER)
    if typical_p is not None:
        mean = tl.load(state + request * 5 + 4).to(tl.float32, bitcast=True)
        kept = kept & (
            nearness_of(key, value_of(high), inverse, mean) >= tl.load(state + request * 5 + 3)
        )
    greedy = False
    if temperature is not None:
        greedy = tl.load(temperature + request) <= 0.0
    score = tl.full([], 0.0, tl.float64)
    if greedy:
        winner = lowest_at(key, tl.maximum(high, NEVER + 1), column)
    else:
        winner, score = race_tile(
            key,
            kept,
            column,
            tile * C,
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
            False,
        )
    partial = request.to(tl.int64) * num_tiles + tile
    tl.store(columns + partial, winner)
    tl.store(scores + partial, score)
    if masses is not None:
        tl.store(
            masses + partial,
            tl.sum(tl.where(kept, mass_of(key, floor, value_of(high), inverse), 0)),
        )


@triton.jit(do_not_specialize=["first_id", "num_tiles", "num_rows"])
def merge_kernel(
    keys,
    state,
    columns,
    scores,
    masses,
    temperature,
    stream_rows,
    tokens,
    row_tokens,
    log_probabilities,
    num_rows,
    first_id,
    num_tiles,
    G: tl.constexpr,
    SHIFT: tl.constexpr,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
):
    """The winner of one request; of equal scores the lowest id."""
    request = tl.program_id(0)
    place = request.to(tl.int64) * num_tiles
    tile = tl.arange(0, TILES)
    column = tl.load(columns + place + tile, mask=tile < num_tiles, other=2147483647)
    score = tl.load(scores + place + tile, mask=tile < num_tiles, other=float("-inf"))
    score = tl.where(column < 2147483647, score, float("-inf"))
    winner = tl.min(tl.where(score == tl.max(score), column, 2147483647))
    high = tl.load(state + request * 5 + 2)
    token = tl.where(high > NEVER, (winner + first_id).to(tl.int64), -1)
    store_token(request, token, tokens, stream_rows, row_tokens, num_rows, G)
    if log_probabilities is not None:
        mass = tl.sum(tl.load(masses + place + tile, mask=tile < num_tiles, other=0))
        there = high > NEVER
        drop = value_of(
            tl.load(keys + place * WIDTH + winner + SHIFT, mask=there, other=0)
        ) - value_of(high)
        tl.store(log_probabilities + request, log_probability(drop, mass, temperature, request))
