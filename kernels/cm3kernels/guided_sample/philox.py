"""Philox4x32-10, the counter-based generator: four 32-bit words from a key and a counter, no state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the same words as Random123,
Triton's `tl.philox` and cuRAND. torch has no unsigned 64-bit product, so words live in int64 and are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10


def philox4x32(key: Tensor, counter_0: Tensor, counter_1: Tensor) -> Tensor:
    """The words of counters (counter_0, counter_1, 0, 0) under 64-bit keys.

    Args:
        key: int64 [n]; low half key word 0, high half key word 1.
        counter_0: int64 [c], 0 <= value < 2**32.
        counter_1: int64 [n], 0 <= value < 2**32.

    Returns:
        int64 [n, c, 4], each word in 0..2**32-1.
    """
    n, c = len(key), len(counter_0)
    # Even words (0, 2) are multiplied, odd words (1, 3) only mixed in. After the product's wrap-around, `>> 32` and the
    # mask still give the true high half, and the low half needs its mask only when it is used.
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    even[0] = counter_0
    odd_0, odd_1 = counter_1[:, None], torch.zeros_like(counter_1)[:, None]
    multiplier = torch.tensor([MULTIPLIER_0, MULTIPLIER_1], dtype=torch.int64, device=key.device).view(2, 1, 1)
    for key_0, key_1 in zip(*_key_schedule(key), strict=True):
        product = even * multiplier
        high_0, high_1 = (product >> 32).unbind()
        torch.bitwise_xor(high_1, odd_0 ^ key_0, out=even[0])
        torch.bitwise_xor(high_0, odd_1 ^ key_1, out=even[1])
        even &= MASK
        odd_1, odd_0 = product.unbind()
    return torch.stack([even[0], odd_0 & MASK, even[1], odd_1 & MASK], dim=-1)


def _key_schedule(key: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both key words of every round, each [n, 1]: the key plus a Weyl sequence."""
    weyl = torch.tensor([WEYL_0, WEYL_1], dtype=torch.int64, device=key.device).view(2, 1, 1, 1)
    rounds = torch.arange(NUM_ROUNDS, device=key.device).view(1, NUM_ROUNDS, 1, 1)
    words = torch.stack([key & MASK, (key >> 32) & MASK]).view(2, 1, len(key), 1)
    first, second = ((words + rounds * weyl) & MASK).unbind()
    return first.unbind(), second.unbind()
