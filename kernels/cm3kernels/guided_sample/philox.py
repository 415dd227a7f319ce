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
        counter_0: int64 [n, c] or [1, c], 0 <= value < 2**32.
        counter_1: int64 [n], 0 <= value < 2**32.

    Returns:
        int64 [n, c, 4], each word in 0..2**32-1.
    """
    # Words 0 and 2 are multiplied, words 1 and 3 only mixed in; the two products change places, so they are written crosswise.
    # After a product's wrap-around, `>> 32` and the mask still give its true high half; the low half needs its mask only where it
    # leaves. All rounds work in three buffers: for few counters the calls cost more than the arithmetic.
    even = torch.zeros(2, len(key), counter_0.shape[1], dtype=torch.int64, device=key.device)
    even[0] = counter_0
    even_0, even_1 = even.unbind()
    odd = torch.stack([counter_1, torch.zeros_like(counter_1)])[:, :, None]
    buffers = [(buffer, *buffer.unbind()) for buffer in (torch.empty_like(even), torch.empty_like(even))]
    for round_, key_2n1 in enumerate(_key_schedule(key)):
        product, product_0, product_1 = buffers[round_ % 2]
        torch.mul(even_1, MULTIPLIER_1, out=product_0)
        torch.mul(even_0, MULTIPLIER_0, out=product_1)
        torch.bitwise_right_shift(product, 32, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(key_2n1).bitwise_and_(MASK)
        odd = product
    odd.bitwise_and_(MASK)
    return torch.stack([even_0, odd[0], even_1, odd[1]], dim=-1)


def _key_schedule(key: Tensor) -> tuple[Tensor, ...]:
    """Both key words of every round, each [2, n, 1]: the key plus a Weyl sequence."""
    weyl = torch.tensor([WEYL_0, WEYL_1], dtype=torch.int64, device=key.device)
    offsets = torch.arange(NUM_ROUNDS, device=key.device)[:, None] * weyl
    words = torch.stack([key, key >> 32])
    return ((words + offsets[:, :, None]) & MASK)[..., None].unbind()
