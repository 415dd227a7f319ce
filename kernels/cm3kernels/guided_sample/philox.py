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
#: Counters (of all keys) up to which every round's keys are written out.
LAID_OUT = 4096


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
    # Words 0 and 2 are multiplied, words 1 and 3 only mixed in; the two products change places, so they are written crosswise.
    # After a product's wrap-around, `>> 32` and the mask still give its true high half; the low half needs its mask only where it
    # leaves. For few counters the calls cost more than the arithmetic: all rounds work in the same memory, in one dimension where
    # the keys are small enough to be laid out, and with tensors in place of Python's numbers.
    multiplier_0, multiplier_1, mask, half, place_of_word = _constants(key.device)
    n, c = len(key), counter_0.shape[1]
    even = torch.zeros(2, n, c, dtype=torch.int64, device=key.device)
    even[0] = counter_0
    odd = torch.zeros_like(even)
    odd[0] = counter_1[:, None]
    keys, buffers = _key_schedule(key), torch.empty(2, 2, n, c, dtype=torch.int64, device=key.device)
    if n * c <= LAID_OUT:
        keys = keys.expand(-1, -1, -1, c).flatten(2)
        even, odd, buffers = even.view(2, -1), odd.view(2, -1), buffers.view(2, 2, -1)
    even_0, even_1 = even.unbind()
    products = [(product, *product.unbind()) for product in buffers.unbind()]
    for round_, round_key in enumerate(keys.unbind()):
        product, product_0, product_1 = products[round_ % 2]
        torch.mul(even_1, multiplier_1, out=product_0)
        torch.mul(even_0, multiplier_0, out=product_1)
        torch.bitwise_right_shift(product, half, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(round_key).bitwise_and_(mask)
        odd = product
    words = torch.cat([even, odd]).view(4, n, c)  # words 0, 2, 1, 3
    if word is not None:
        return words.gather(0, place_of_word[word][None])[0].bitwise_and_(mask)
    return words.bitwise_and_(mask).index_select(0, place_of_word).permute(1, 2, 0).contiguous()


@cache
def _constants(device: torch.device) -> tuple[Tensor, ...]:
    """Multipliers, mask and shift, without dimensions; where words 0 to 3 stand among (even, odd)."""
    numbers = [torch.tensor(value, device=device) for value in (MULTIPLIER_0, MULTIPLIER_1, MASK, 32)]
    return *numbers, torch.tensor([0, 2, 1, 3], device=device)


@cache
def _weyl_sequence(device: torch.device) -> Tensor:
    """What each round adds to the key, int64 [rounds, 2, 1]."""
    return (torch.arange(NUM_ROUNDS, device=device)[:, None] * torch.tensor([WEYL_0, WEYL_1], device=device))[:, :, None]


def _key_schedule(key: Tensor) -> Tensor:
    """Both key words of every round, int64 [rounds, 2, n, 1]: the key plus a Weyl sequence."""
    return (torch.stack([key, key >> 32]) + _weyl_sequence(key.device)).bitwise_and_(MASK)[..., None]
