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


def philox4x32(key: Tensor, counter_0: Tensor, counter_1: Tensor) -> Tensor:
    """The words of counters (counter_0, counter_1, 0, 0) under 64-bit keys.

    Args:
        key: int64 [n]; low half key word 0, high half key word 1.
        counter_0: int64 [n, c] or [1, c], 0 <= value < 2**32.
        counter_1: int64 [n], 0 <= value < 2**32.

    Returns:
        int64 [n, c, 4], each word in 0..2**32-1.
    """
    # Words 0 and 2 are multiplied, words 1 and 3 only mixed in, and the two products change places. So each round writes its
    # products twice, (0, 1, 0, 1): the middle two are in the other order, and no copy is needed. After a product's wrap-around,
    # `>> 32` and the mask still give its true high half; the low half needs its mask only where it leaves. All rounds work in
    # the same memory: for few counters the calls cost more than the arithmetic.
    multipliers, mask, half = _constants(key.device)
    n, c = len(key), counter_0.shape[1]
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    even[0] = counter_0
    twice = even.expand(2, 2, n, c)
    odd = torch.stack([counter_1, torch.zeros_like(counter_1)])[:, :, None]
    buffers = [(buffer, buffer.view(4, n, c)[1:3]) for buffer in (torch.empty_like(twice, memory_format=torch.contiguous_format),
                                                                  torch.empty_like(twice, memory_format=torch.contiguous_format))]
    for round_, key_2n1 in enumerate(_key_schedule(key)):
        products, crossed = buffers[round_ % 2]
        torch.mul(twice, multipliers, out=products)
        torch.bitwise_right_shift(crossed, half, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(key_2n1).bitwise_and_(mask)
        odd = crossed
    odd.bitwise_and_(mask)
    return torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1)


@cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """The multipliers [2, 1, 1]; the mask and the shift as tensors: a call with one is quicker than with a number of Python's."""
    multipliers = torch.tensor([MULTIPLIER_0, MULTIPLIER_1], device=device).view(2, 1, 1)
    return multipliers, torch.tensor(MASK, device=device), torch.tensor(32, device=device)


@cache
def _weyl_sequence(device: torch.device) -> Tensor:
    """What each round adds to the key, int64 [rounds, 2, 1]."""
    return (torch.arange(NUM_ROUNDS, device=device)[:, None] * torch.tensor([WEYL_0, WEYL_1], device=device))[:, :, None]


def _key_schedule(key: Tensor) -> tuple[Tensor, ...]:
    """Both key words of every round, each [2, n, 1]: the key plus a Weyl sequence."""
    words = torch.stack([key, key >> 32])
    return (words + _weyl_sequence(key.device)).bitwise_and_(MASK)[..., None].unbind()
