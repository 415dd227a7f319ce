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
    key_0, key_1 = (key & MASK)[:, None], ((key >> 32) & MASK)[:, None]
    # Even words (0, 2) are multiplied, odd words (1, 3) only mixed in. After the product's wrap-around, `>> 32` and the
    # mask still give the true high half, and the low half needs its mask only when it is used.
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    odd = torch.zeros_like(even)
    even[0], odd[0] = counter_0, counter_1[:, None]
    multiplier = torch.tensor([MULTIPLIER_0, MULTIPLIER_1], dtype=torch.int64, device=key.device).view(2, 1, 1)
    keys = torch.stack([key_0, key_1])
    weyl = torch.tensor([WEYL_0, WEYL_1], dtype=torch.int64, device=key.device).view(2, 1, 1)
    for round_ in range(NUM_ROUNDS):
        product = even * multiplier
        high = product >> 32
        even = high.flip(0).bitwise_xor_(odd).bitwise_xor_(keys + round_ * weyl).bitwise_and_(MASK)
        odd = product.flip(0)
    odd &= MASK
    return torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1)
