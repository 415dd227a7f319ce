"""Matrices in four bits a weight.

Each row is cut into groups of 64 weights; a group has a scale, and a whole number -8..7 for each weight. The scale of
least squared error is chosen among a few.

Legend: O rows and I columns of a matrix, G = I / 64 groups of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Weights of a group; I is a multiple of it.
GROUP = 64
_LEAST, _MOST = -8, 7
#: Scales tried, as shares of the one with which the largest weight of a group is exact.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)


def quantise(weights_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes uint8 [O, I / 2], two a byte, the first in the lower half; and scales fp16 [O, G]."""
    rows, columns = weights_OI.shape
    grouped = weights_OI.float().reshape(rows, columns // GROUP, GROUP)
    largest = grouped.abs().amax(2, keepdim=True)
    least_error = torch.full_like(largest, float("inf"))
    codes, scales = torch.zeros_like(grouped), torch.zeros_like(largest)
    for share in _SHARES:
        scale = (largest * share / _MOST).half().float().clamp_min(1e-7)
        tried = (grouped / scale).round().clamp(_LEAST, _MOST)
        error = ((tried * scale - grouped) ** 2).sum(2, keepdim=True)
        better = error < least_error
        least_error = torch.where(better, error, least_error)
        codes, scales = torch.where(better, tried, codes), torch.where(better, scale, scales)
    pairs = (codes - _LEAST).to(torch.uint8).reshape(rows, columns // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, scales[..., 0].half()


def dequantise(codes: Tensor, scales_OG: Tensor) -> Tensor:
    """Return weights float32 [O, I] of `quantise`."""
    rows, groups = scales_OG.shape
    pairs = torch.stack([codes & 15, codes >> 4], dim=2).reshape(rows, groups, GROUP)
    return ((pairs.float() + _LEAST) * scales_OG.float()[..., None]).reshape(rows, -1)
