"""Path B's searches: what `_one_block.py` finds within one block, by sweeps over all tiles of a
request.

Where `gates` (the reference's keys) are given, an id whose gate is below `gate_floor` is excluded.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

from cm3kernels.guided_sample._tile import ABOVE, NEVER, mass_of, moment_of, nearness_of, value_of


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


#: What a search sums, and by what: number of ids by key, mass by key, or mass by nearness.
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
    """Sums over the ids from each of three keys (or nearnesses) on, int64."""
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
    """The largest key in low..high from which on the sum is at least `wanted`, two bits a sweep; a
    search for a number of ids may stop between keys."""
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
