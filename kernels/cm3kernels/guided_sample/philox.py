"""Random numbers of a draw: a function of (seed, position, id), using Philox4x32-10.

The generator is counter-based: four 32-bit words from a key and a counter, without state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the
same words as Random123, Triton's `tl.philox` and cuRAND. torch has no unsigned 64-bit product, so
words live in int64 and are masked. Legend: n keys (requests), c counters of each, V ids of
the slice.
"""

from __future__ import annotations

from functools import cache, lru_cache

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10
#: Up to this many counters (of all keys), Python integers are faster than tensors.
FEW = 320


def log_survival(seed_n: Tensor, position_n: Tensor, first_id: int, num_ids: int) -> Tensor:
    """Return -E, float64 [n, V]: log(1 - u) of one uniform variate per id.

    E is exponential and depends only on (seed, position, id): word id % 4 of Philox4x32-10 under key
    `seed`, counter (id // 4, position, 0, 0); u = ((word >> 8) + 0.5) / 2**24. The arg min of E_v / p_v,
    i.e. the arg max of log p_v - log E_v, is a draw from p.
    """
    counter_1c = torch.arange(
        first_id // 4, (first_id + num_ids - 1) // 4 + 1, device=seed_n.device
    )[None]
    skip = first_id % 4
    return log_survival_of(
        philox4x32(seed_n, counter_1c, position_n).flatten(1)[:, skip : skip + num_ids]
    )


def log_survival_of(bits: Tensor) -> Tensor:
    """Return log(1 - u) of 24 random bits, float64, in place. 1 - u is exact, so this is as accurate as
    log1p(-u), and faster."""
    return bits.mul_(-(2.0**-24)).add_(1.0 - 2.0**-25).log_()


def philox4x32(key: Tensor, counter_0: Tensor, counter_1: Tensor) -> Tensor:
    """Return the upper 24 bits of the words of counters (counter_0, counter_1, 0, 0) under 64-bit keys.

    Args:
        key: int64 [n]; low half key word 0, high half key word 1.
        counter_0: int64 [n, c] or [1, c], 0 <= value < 2**32.
        counter_1: int64 [n], 0 <= value < 2**32.

    Returns:
        float64 [n, c, 4], whole numbers in 0..2**24-1.
    """
    n, c = len(key), counter_0.shape[1]
    few = n * c <= FEW and key.device.type == "cpu"
    return (_by_integers if few else _by_tensors)(key, counter_0, counter_1, n, c)


def _by_tensors(key: Tensor, counter_0: Tensor, counter_1: Tensor, n: int, c: int) -> Tensor:
    """Process two words at a time; all rounds reuse the same memory."""
    # Words 0 and 2 are multiplied, words 1 and 3 only mixed in; the two products swap places, so they are
    # written crosswise. Where a product overflows, `>> 32` and the mask still give its true high half; the
    # low half is masked only at the end.
    multiplier_0, multiplier_1, mask, half, eight, mask_24 = _constants(key.device)
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    even[0] = counter_0
    odd = torch.zeros_like(even)
    odd[0] = counter_1[:, None]
    keys, buffers = (
        _key_schedule(key),
        torch.empty(2, 2, n, c, dtype=torch.int64, device=key.device),
    )
    even_0, even_1 = even.unbind()
    products = [(product, *product.unbind()) for product in buffers.unbind()]
    for round_, round_key in enumerate(keys.unbind()):
        product, product_0, product_1 = products[round_ % 2]
        torch.mul(even_1, multiplier_1, out=product_0)
        torch.mul(even_0, multiplier_0, out=product_1)
        torch.bitwise_right_shift(product, half, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(mask)
        odd = product
    bits = torch.empty(n, c, 2, 2, dtype=torch.float64, device=key.device)
    bits[..., 0] = even.bitwise_right_shift_(eight).permute(1, 2, 0)
    bits[..., 1] = odd.bitwise_right_shift_(eight).bitwise_and_(mask_24).permute(1, 2, 0)
    return bits.view(n, c, 4)


@cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """Return multipliers, masks and shifts as tensors without dimensions: a call with a tensor costs less than with
    a number."""
    return tuple(
        torch.tensor(value, device=device)
        for value in (MULTIPLIER_0, MULTIPLIER_1, MASK, 32, 8, MASK >> 8)
    )


@cache
def _weyl_sequence(device: torch.device) -> Tensor:
    """Return the increment of the key in each round, int64 [rounds, 2, 1]."""
    return (
        torch.arange(NUM_ROUNDS, device=device)[:, None]
        * torch.tensor([WEYL_0, WEYL_1], device=device)
    )[:, :, None]


def _key_schedule(key: Tensor) -> Tensor:
    """Return both key words of every round, int64 [rounds, 2, n, 1]: the key plus a Weyl sequence."""
    return (torch.stack([key, key >> 32]) + _weyl_sequence(key.device)).bitwise_and_(MASK)[
        ..., None
    ]


def _by_integers(key: Tensor, counter_0: Tensor, counter_1: Tensor, n: int, c: int) -> Tensor:
    """Process all counters side by side in one Python integer, 64 bits each: for few of them an operation on a
    tensor costs as much as its call, on an integer a tenth of that. A product of two 32-bit words stays
    within its lane; bits shifted in from the next lane are above bit 31, as is everything else that a round's
    mask removes."""
    ones = _ones(n * c)
    mask, mask_24, weyl_0, weyl_1 = ones * MASK, ones * (MASK >> 8), ones * WEYL_0, ones * WEYL_1
    keys, word_0, word_1 = (
        _lanes(part, n, c) for part in (key[:, None], counter_0, counter_1[:, None])
    )
    word_2, word_3 = 0, 0
    key_0, key_1 = keys & mask, keys >> 32 & mask
    for _ in range(NUM_ROUNDS):
        product_0, product_2 = word_0 * MULTIPLIER_0, word_2 * MULTIPLIER_1
        word_0, word_1 = (product_2 >> 32 ^ word_1 ^ key_0) & mask, product_2
        word_2, word_3 = (product_0 >> 32 ^ word_3 ^ key_1) & mask, product_0
        key_0, key_1 = key_0 + weyl_0, key_1 + weyl_1  # stays far below 64 bits
    first, second = (
        (even >> 8 & mask_24 | (odd >> 8 & mask_24) << 32).to_bytes(8 * n * c, "little")
        # two words per lane: the conversion to bytes costs most
        for even, odd in ((word_0, word_1), (word_2, word_3))
    )
    bits = (
        torch.frombuffer(bytearray(first + second), dtype=torch.int32)
        .view(2, n, c, 2)
        .permute(1, 2, 0, 3)
    )
    return torch.empty(n, c, 2, 2, dtype=torch.float64).copy_(bits).view(n, c, 4)


@lru_cache(maxsize=32)
def _ones(num: int) -> int:
    """Return 1 in each lane."""
    return int.from_bytes(b"\1\0\0\0\0\0\0\0" * num, "little")


def _lanes(values: Tensor, n: int, c: int) -> int:
    """Return a lane for each of the int64 values, expanded to [n, c]."""
    lanes = bytearray(8 * n * c)
    torch.frombuffer(lanes, dtype=torch.int64).view(n, c).copy_(values)
    return int.from_bytes(lanes, "little")
