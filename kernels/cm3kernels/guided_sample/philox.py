"""Philox4x32-10, the counter-based generator: four 32-bit words from a key and a counter, no state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the same words as Random123,
Triton's `tl.philox` and cuRAND. torch has no unsigned 64-bit product, so words live in int64 and are masked.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10


def philox4x32(key: Tensor, counter_0: Tensor, counter_1: Tensor, word: Tensor | None = None) -> Tensor:
    """The words of counters (counter_0, counter_1, 0, 0) under 64-bit keys.

    Args:
        key: int64 [n]; low half key word 0, high half key word 1.
        counter_0: int64 [n, c] or [1, c], 0 <= value < 2**32.
        counter_1: int64 [n], 0 <= value < 2**32.
        word: int64 [n, c], which one of each four; None: all.

    Returns:
        int64 [n, c, 4], or [n, c] with `word`; each in 0..2**32-1.
    """
    # Words 0 and 2 are multiplied, words 1 and 3 only mixed in, and the two products change places. So each round writes its
    # products twice, (0, 1, 0, 1): the middle two are in the other order. The halves of a product are views of its memory as
    # int32, and the next round's numbers are written into the low halves of int64s whose high halves stay 0: no shift, no mask,
    # no copy. For few counters the calls cost more than the arithmetic.
    multipliers, place_of_word = _constants(key.device)
    n, c = len(key), counter_0.shape[1]
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    even[0] = counter_0
    twice, even_low = even.expand(2, 2, n, c), even.view(torch.int32).view(2, n, c, 2)[..., 0]
    buffers = torch.empty(2, 2, 2, n, c, dtype=torch.int64, device=key.device)  # a round reads the other's low halves
    crossed = buffers.view(2, 4, n, c)[:, 1:3]
    halves = buffers.view(torch.int32).view(2, 4, n, c, 2)[:, 1:3]
    products, low, high = buffers.unbind(), halves[..., 0].unbind(), halves[..., 1].unbind()
    odd = torch.stack([counter_1, torch.zeros_like(counter_1)]).view(torch.int32).view(2, n, 2)[..., :1]
    for round_, key_2n1 in enumerate(_key_schedule(key)):
        torch.mul(twice, multipliers, out=products[round_ % 2])
        torch.bitwise_xor(high[round_ % 2], odd, out=even_low)
        even_low.bitwise_xor_(key_2n1)
        odd = low[round_ % 2]
    words = torch.cat([even, crossed[(NUM_ROUNDS - 1) % 2]])  # words 0, 2, 1, 3
    if word is not None:
        return words.gather(0, place_of_word[word][None])[0].bitwise_and_(MASK)
    return words.bitwise_and_(MASK).index_select(0, place_of_word).permute(1, 2, 0).contiguous()


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The multipliers [2, 1, 1]; where words 0 to 3 stand among (even, odd)."""
    multipliers = torch.tensor([MULTIPLIER_0, MULTIPLIER_1], device=device).view(2, 1, 1)
    return multipliers, torch.tensor([0, 2, 1, 3], device=device)


@cache
def _weyl_sequence(device: torch.device) -> Tensor:
    """What each round adds to the key, int64 [rounds, 2, 1]."""
    return (torch.arange(NUM_ROUNDS, device=device)[:, None] * torch.tensor([WEYL_0, WEYL_1], device=device))[:, :, None]


def _key_schedule(key: Tensor) -> tuple[Tensor, ...]:
    """Both key words of every round, each int32 [2, n, 1]: the key plus a Weyl sequence, its low half."""
    words = torch.stack([key, key >> 32]) + _weyl_sequence(key.device)
    return words.view(torch.int32).view(NUM_ROUNDS, 2, len(key), 2)[..., :1].unbind()
