"""Path B: more ids than one program can hold. Four launches: keys of all tiles -> thresholds of
each request -> the winner of each tile -> the winner. What the programs compute of an id is the
code of path A, and so are the tokens.

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
    moment_of,
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
    """Keys of one tile, and the range of those that are looked at first: the reference's where they
    are wanted."""
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


@triton.jit
def load_gated(keys, gates, gate_floor, place):
    """Keys; `NEVER` where the reference's key is below its floor."""
    key = tl.load(keys + place)
    if gates is not None:
        key = tl.where(tl.load(gates + place) >= gate_floor, key, NEVER)
    return key


@triton.jit
def swept_range(keys, gates, gate_floor, least, num_tiles, WIDTH: tl.constexpr):
    """Smallest (from `least` on) and largest legal key of a request."""
    low, high = tl.full([WIDTH], ABOVE, tl.int32), tl.full([WIDTH], NEVER, tl.int32)
    for tile in range(num_tiles):
        key = load_gated(keys, gates, gate_floor, tile * WIDTH + tl.arange(0, WIDTH))
        low = tl.minimum(low, tl.where((key > NEVER) & (key >= least), key, ABOVE))
        high = tl.maximum(high, key)
    return tl.min(low), tl.max(high)


#: What a search counts, and by what: ids by their keys, their masses by their keys, or their masses
#: by their nearness.
NUMBER = tl.constexpr(0)
MASS = tl.constexpr(1)
TYPICAL = tl.constexpr(2)


@triton.jit
def swept_amounts(
    keys,
    gates,
    gate_floor,
    floor,
    highest,
    inverse,
    mean,
    first,
    second,
    third,
    num_tiles,
    WIDTH: tl.constexpr,
    OF: tl.constexpr,
):
    """Amount of the ids from each of three keys (or nearnesses) on, int64."""
    amount_1, amount_2, amount_3 = (
        tl.zeros([WIDTH], tl.int64),
        tl.zeros([WIDTH], tl.int64),
        tl.zeros([WIDTH], tl.int64),
    )
    for tile in range(num_tiles):
        key = load_gated(keys, gates, gate_floor, tile * WIDTH + tl.arange(0, WIDTH))
        if OF == NUMBER:
            amount = (key > NEVER).to(tl.int64)
        else:
            amount = mass_of(key, floor, highest, inverse)
        if OF == TYPICAL:
            key = nearness_of(key, highest, inverse, mean)
        amount_1 += tl.where(key >= first, amount, 0)
        amount_2 += tl.where(key >= second, amount, 0)
        amount_3 += tl.where(key >= third, amount, 0)
    return tl.sum(amount_1), tl.sum(amount_2), tl.sum(amount_3)


@triton.jit
def swept_search(
    keys,
    gates,
    gate_floor,
    floor,
    highest,
    inverse,
    mean,
    wanted,
    low,
    high,
    num_tiles,
    WIDTH: tl.constexpr,
    OF: tl.constexpr,
):
    """The largest key in low..high from which on there is at least `wanted`, two bits a sweep; a
    number may stop between keys."""
    below, above = low.to(tl.int64), high.to(tl.int64)
    while below < above:
        step = (above - below + 3) >> 2
        first, second, third = (
            below + step,
            tl.minimum(below + 2 * step, above),
            tl.minimum(below + 3 * step, above),
        )
        amount_1, amount_2, amount_3 = swept_amounts(
            keys,
            gates,
            gate_floor,
            floor,
            highest,
            inverse,
            mean,
            first.to(tl.int32),
            second.to(tl.int32),
            third.to(tl.int32),
            num_tiles,
            WIDTH,
            OF,
        )
        enough_1, enough_2 = amount_1.to(tl.float64) >= wanted, amount_2.to(tl.float64) >= wanted
        enough_3 = amount_3.to(tl.float64) >= wanted
        above = tl.where(
            enough_3,
            above,
            tl.where(enough_2, third - 1, tl.where(enough_1, second - 1, first - 1)),
        )
        below = tl.where(
            enough_3, third, tl.where(enough_2, second, tl.where(enough_1, first, below))
        )
        if OF == NUMBER:
            found = tl.where(
                enough_3, amount_3, tl.where(enough_2, amount_2, tl.where(enough_1, amount_1, 0))
            )
            above = tl.where(found.to(tl.float64) == wanted, below, above)
    return below.to(tl.int32)


@triton.jit
def swept_floor(
    keys,
    gates,
    gate_floor,
    low,
    high,
    num_ids,
    top_k,
    top_p,
    request,
    inverse,
    num_tiles,
    WIDTH: tl.constexpr,
):
    """`_one_block.top_floor` over all tiles of a request."""
    floor = low
    if top_k is not None:
        k = tl.load(top_k + request)
        if (k > 0) & (k < num_ids):
            floor = swept_search(
                keys,
                gates,
                gate_floor,
                low,
                value_of(high),
                inverse,
                0.0,
                k.to(tl.float64),
                low,
                high,
                num_tiles,
                WIDTH,
                NUMBER,
            )
            floor, _ = swept_range(keys, gates, gate_floor, floor, num_tiles, WIDTH)
    if top_p is not None:
        p = tl.load(top_p + request).to(tl.float64)
        if p < 1.0:
            total, _, _ = swept_amounts(
                keys,
                gates,
                gate_floor,
                floor,
                value_of(high),
                inverse,
                0.0,
                floor,
                floor,
                floor,
                num_tiles,
                WIDTH,
                MASS,
            )
            floor = swept_search(
                keys,
                gates,
                gate_floor,
                floor,
                value_of(high),
                inverse,
                0.0,
                p * total.to(tl.float64),
                floor,
                high,
                num_tiles,
                WIDTH,
                MASS,
            )
    return floor


@triton.jit
def swept_typical(keys, gates, gate_floor, floor, high, inverse, p, num_tiles, WIDTH: tl.constexpr):
    """Smallest nearness of the typical ids among those from `floor` on, and the mean surprise that
    it is measured from."""
    masses, moments = tl.zeros([WIDTH], tl.int64), tl.zeros([WIDTH], tl.int64)
    for tile in range(num_tiles):
        key = load_gated(keys, gates, gate_floor, tile * WIDTH + tl.arange(0, WIDTH))
        mass = mass_of(key, floor, value_of(high), inverse)
        masses += mass
        moments += moment_of(key, mass, value_of(high), inverse)
    total = tl.sum(masses).to(tl.float64)
    mean = (tl.sum(moments).to(tl.float64) / total).to(tl.float32)
    wanted = tl.maximum(p * total, 1.0)  # the nearest at least, whatever p is
    furthest, nearest = tl.full([], NEVER, tl.int32), tl.full([], -1, tl.int32)
    return swept_search(
        keys,
        gates,
        gate_floor,
        floor,
        value_of(high),
        inverse,
        mean,
        wanted,
        furthest,
        nearest,
        num_tiles,
        WIDTH,
        TYPICAL,
    ), mean


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
