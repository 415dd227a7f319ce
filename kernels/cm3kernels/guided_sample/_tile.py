"""What the kernels do with a tile of ids in registers: mix streams, order numbers, find thresholds,
race.

A tile is [C, 4]: row i has the four ids of one Philox counter, so that a draw of four words serves
four ids. Column 4 * (first row + i) + j - shift of the logits is at [i, j]; shift = first id % 4
aligns counters with columns. Values are compared as keys: int32 in the order of the floats, `NEVER`
for an id that can't be drawn. Keys are exact, so a threshold is found bit by bit, and equal numbers
stay together. Masses are summed as integers (fixed point, 40 bits after the point): the sum does
not depend on the order, so a threshold depends neither on tiles nor on the position in the batch.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# Arguments of kernels are what Triton makes of them; its decorator has no types.

from __future__ import annotations

import triton
import triton.language as tl

#: Key of an id that can't be drawn; below every float's.
NEVER = tl.constexpr(-2147483648)
#: Above every float's key.
ABOVE = tl.constexpr(2147483647)
#: Key of the lowest finite float32.
LOWEST = tl.constexpr(-2139095040)
#: Fixed-point one of a mass.
MASS_ONE = tl.constexpr(1099511627776.0)
#: Largest finite float32.
LARGEST = tl.constexpr(3.4028234663852886e38)
#: Exponent bits of a float32, all set in inf and nan.
EXPONENT = tl.constexpr(0x7F800000)
#: Scores closer than this are compared again, in float64. Their float32 error is below 3e-5
#: (README.md, "Exactness").
NEAR = tl.constexpr(0.0001220703125)


@triton.jit
def key_of(value):
    """Order-preserving int32 of finite float32 numbers; -0 and 0 are equal."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The float32 of a key; of `NEVER` the lowest, so that nothing becomes nan."""
    key = tl.maximum(key, LOWEST)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def key_at_least(value):
    """The smallest key whose float32 is at least a float64 number."""
    bounded = tl.minimum(tl.maximum(value, -LARGEST), LARGEST)
    nearest = bounded.to(tl.float32)
    key = key_of(nearest)
    return tl.where(nearest.to(tl.float64) < bounded, key + 1, key)


@triton.jit
def columns_of(first_row, SHIFT: tl.constexpr, C: tl.constexpr, WRAP: tl.constexpr):
    """Columns of the logits in a tile [C, 4]; below 0 or past the last for padding. WRAP (of a
    single tile): the elements before column 0 have the columns after the tile's last, so that 4 * C
    ids fit whatever the shift."""
    column = (first_row + tl.arange(0, C)[:, None]) * 4 + tl.arange(0, 4)[None, :] - SHIFT
    if WRAP:
        column = tl.where(column < 0, column + 4 * C, column)
    return column


@triton.jit
def allowed_of(
    request, column, num_ids, num_words, first_id, allowed, allowed_bits, allowed_from, allowed_to
):
    """Which ids of a tile a request may draw. A pointer that is None allows all."""
    legal = (column >= 0) & (column < num_ids)
    row = request.to(tl.int64)
    if allowed is not None:
        legal = legal & (tl.load(allowed + row * num_ids + column, mask=legal, other=0) != 0)
    if allowed_bits is not None:
        words = tl.load(allowed_bits + row * num_words + (column >> 5), mask=legal, other=0)
        legal = legal & (((words >> (column & 31)) & 1) != 0)
    if allowed_from is not None:
        legal = legal & (column + first_id >= tl.load(allowed_from + request))
    if allowed_to is not None:
        legal = legal & (column + first_id < tl.load(allowed_to + request))
    return legal


@triton.jit
def mix_tile(
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
    G: tl.constexpr,
):
    """Keys of the mixed logits and of the reference's. Products of float32 numbers are exact in
    float64, so their sum is the same with or without fused multiply-add; it is rounded to float32
    once."""
    inside = (column >= 0) & (column < num_ids)
    mixed = tl.zeros(column.shape, tl.float64)
    conditional = tl.zeros(column.shape, tl.float32)
    chosen = tl.full([], 0, tl.int32)
    if reference is not None:
        chosen = tl.load(reference + request).to(tl.int32)
        legal = legal & (chosen >= 0) & (chosen < G)
    for g in tl.static_range(G):
        row = tl.load(stream_rows + request * G + g)
        weight = tl.load(weights + request * G + g).to(tl.float64)
        there = (row >= 0) & (row < num_rows)
        base = logits + tl.where(there, row, 0).to(tl.int64) * row_stride
        value = tl.load(base + column, mask=inside & there, other=0.0).to(tl.float32)
        finite = (value.to(tl.int32, bitcast=True) & EXPONENT) != EXPONENT  # neither inf nor nan
        left_out = ((row < 0) | (tl.where(weight == 0.0, 1, 0) != 0)) & (chosen != g)
        legal = legal & ((finite & there) | left_out)
        value = tl.where(finite, value, 0.0)
        mixed += weight * value.to(tl.float64)
        conditional = tl.where(chosen == g, value, conditional)
    mixed = tl.minimum(tl.maximum(mixed, -LARGEST), LARGEST).to(tl.float32)
    return tl.where(legal, key_of(mixed), NEVER), tl.where(legal, key_of(conditional), NEVER)


@triton.jit
def temperature_of(temperature, request):
    """float64; 1 where it is 0 (or None)."""
    given = tl.full([], 1.0, tl.float64)
    if temperature is not None:
        given = tl.load(temperature + request).to(tl.float64)
        given = tl.where(given > 0.0, given, 1.0)
    return given


@triton.jit
def inverse_temperature(temperature, request):
    """1 / temperature in float32, for masses and the race's first pass."""
    return tl.minimum(1.0 / temperature_of(temperature, request), 1e30).to(tl.float32)


@triton.jit
def score_of(key, highest, inverse):
    """(x - largest x) / temperature; bounded, so that nothing becomes nan."""
    return tl.maximum(value_of(key) - highest, -LARGEST) * inverse


@triton.jit
def mass_of(key, floor, highest, inverse):
    """Fixed-point mass exp((x - largest x) / temperature) of keys from `floor` on, else 0."""
    mass = (tl.exp(score_of(key, highest, inverse)) * MASS_ONE).to(tl.int64)
    return tl.where((key >= floor) & (key > NEVER), mass, 0)


@triton.jit
def kth_key(key, k, low, high):
    """The k-th largest key; the smallest from `low` on if there are fewer. All legal keys lie in
    low..high."""
    below, above = low.to(tl.int64), high.to(tl.int64)
    while below < above:
        middle = (below + above + 1) >> 1
        count = tl.sum((key >= middle.to(tl.int32)).to(tl.int32))
        below = tl.where(count >= k, middle, below)
        # Exactly k: it doesn't matter where between two keys the threshold is.
        above = tl.where(count > k, above, tl.where(count == k, middle, middle - 1))
    return tl.min(tl.where(key >= below.to(tl.int32), key, ABOVE))


@triton.jit
def nucleus_key(key, mass, p, low, high):
    """The largest key such that ids from it on have p of the mass; `high` for p <= 0."""
    wanted = p * tl.sum(mass).to(tl.float64)
    below, above = low.to(tl.int64), high.to(tl.int64)
    while below < above:
        middle = (below + above + 1) >> 1
        enough = tl.sum(tl.where(key >= middle.to(tl.int32), mass, 0)).to(tl.float64) >= wanted
        below = tl.where(enough, middle, below)
        above = tl.where(enough, above, middle - 1)
    return below.to(tl.int32)


@triton.jit
def range_of(key):
    """Smallest and largest legal key; `ABOVE` and `NEVER` where there is none."""
    return tl.min(tl.where(key > NEVER, key, ABOVE)), tl.max(key)


@triton.jit
def ratio_key(key, high, ratio, temperature):
    """Smallest key of at least `ratio` times the probability of `key`, at most `high`: the
    softmax's normaliser cancels."""
    return tl.minimum(
        key_at_least(value_of(key).to(tl.float64) + temperature * tl.log(ratio)), high
    )


@triton.jit
def min_p_key(floor, high, min_p, temperature, request):
    """`floor`, or that of min-p where it is higher."""
    ratio = tl.load(min_p + request).to(tl.float64)
    if ratio > 0.0:
        floor = tl.maximum(
            floor, ratio_key(high, high, ratio, temperature_of(temperature, request))
        )
    return floor


@triton.jit
def moment_of(key, mass, highest, inverse):
    """Fixed-point mass times -(x - largest x) / temperature, which is the surprise up to a
    constant."""
    surprise = tl.minimum(-score_of(key, highest, inverse), 1000.0)  # beyond, no mass
    return (tl.exp(-surprise) * surprise * MASS_ONE).to(tl.int64) * (mass > 0).to(tl.int64)


@triton.jit
def nearness_of(key, highest, inverse, mean):
    """Key that is larger the nearer a surprise is to the mean: distances are ordered as their bits
    are."""
    return ~tl.abs(-score_of(key, highest, inverse) - mean).to(tl.int32, bitcast=True)


@triton.jit
def survival_of(word):
    """1 - u of a 32-bit word, float64, exact: u = ((word >> 8) + 0.5) / 2**24."""
    return 1.0 - ((word >> 8).to(tl.float64) + 0.5) * 5.9604644775390625e-08


@triton.jit
def noise_of(word):
    """-log E, E = -log(1 - u), in float32. Near 0 by a series, since 1 - u loses most digits of a
    small u; near 1 from the word's complement, which is exact there."""
    high = (word >> 8).to(tl.int32)
    u = (high.to(tl.float32) + 0.5) * 5.9604644775390625e-08
    rest = ((16777215 - high).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    series = u * (
        1.0
        + u
        * (
            0.5
            + u * (0.3333333333 + u * (0.25 + u * (0.2 + u * (0.1666666667 + u * 0.1428571429))))
        )
    )
    return -tl.log(tl.where(u < 0.0625, series, -tl.log(rest)))


@triton.jit
def words_of(seed, counter, position):
    """The four words of counters (counter, position, 0, 0) under the key `seed`."""
    return tl.philox(
        seed,
        counter.to(tl.uint32),
        position.to(tl.uint32),
        counter.to(tl.uint32) * 0,
        counter.to(tl.uint32) * 0,
    )


@triton.jit
def word_at(lane, zeroth, first, second, third):
    """One of four words."""
    return tl.where(
        lane < 2, tl.where(lane == 0, zeroth, first), tl.where(lane == 2, second, third)
    )


@triton.jit
def exact_score(value, highest, temperature, request, seed, id_, position):
    """Score of one id, computed as in the reference, float64."""
    zeroth, first, second, third = words_of(seed, id_ >> 2, position)
    word = word_at(id_ & 3, zeroth, first, second, third)
    drop = value.to(tl.float64) - highest.to(tl.float64)
    if temperature is not None:
        drop = drop / tl.load(temperature + request).to(tl.float64)
    return drop - tl.log(-tl.log(survival_of(word)))


@triton.jit
def race_tile(
    key,
    kept,
    column,
    first_row,
    first_counter,
    first_id,
    highest,
    inverse,
    temperature,
    request,
    seed,
    position,
    WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
    C: tl.constexpr,
    WRAP: tl.constexpr,
):
    """Of the kept ids of a tile, the column and float64 score of the winner; of equal scores the
    lowest id. No id: 2**31 - 1.

    All race in float32; those within `WINDOW` of the best (almost always one) again in float64, one
    by one.
    """
    zeroth, first, second, third = words_of(
        seed, first_counter + first_row + tl.arange(0, C), position
    )
    lane = tl.arange(0, 4)[None, :]
    word = word_at(lane, zeroth[:, None], first[:, None], second[:, None], third[:, None])
    if WRAP and SHIFT > 0:
        zeroth, first, second, third = words_of(seed, first_counter + C, position)
        word = tl.where(column >= 4 * C - SHIFT, word_at(lane, zeroth, first, second, third), word)
    score = tl.where(kept, score_of(key, highest, inverse) + noise_of(word), float("-inf"))
    near = kept & (score >= tl.max(score) - WINDOW)
    best_column, best_score = (
        tl.full([], 2147483647, tl.int32),
        tl.full([], float("-inf"), tl.float64),
    )
    last = tl.full([], -2147483648, tl.int32)
    for _ in range(tl.sum(near.to(tl.int32))):
        last = tl.min(tl.where(near & (column > last), column, 2147483647))
        value = value_of(tl.max(tl.where(column == last, key, NEVER)))
        exact = exact_score(value, highest, temperature, request, seed, first_id + last, position)
        better = (exact > best_score) | (best_column == 2147483647)
        best_column = tl.where(better, last, best_column)
        best_score = tl.where(better, exact, best_score)
    return best_column, best_score


@triton.jit
def lowest_at(key, wanted, column):
    """The lowest column with that key."""
    return tl.min(tl.where(key == wanted, column, 2147483647))
