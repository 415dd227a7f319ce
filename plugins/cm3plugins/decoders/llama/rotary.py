"""Rotary positions (Su et al. 2021, arXiv:2104.09864). Legend: B rows, T tokens, H heads, D head size."""

from __future__ import annotations

import torch
from torch import Tensor


class Rotary:
    """Cosines and sines [positions, D] of rotary positions; float32, made once for each device."""

    def __init__(self, num_positions: int, head_dim: int, theta: float) -> None:
        self.num_positions, self.head_dim, self.theta = num_positions, head_dim, theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def at(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, T, 1, D]."""
        device = positions_BT.device
        if device not in self._tables:
            even = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
            frequency = 1.0 / (self.theta ** (even / self.head_dim))
            angle = torch.arange(self.num_positions, device=device).float()[:, None] * frequency
            angle = torch.cat([angle, angle], dim=-1)
            self._tables[device] = angle.cos(), angle.sin()
        cosines, sines = self._tables[device]
        return cosines[positions_BT][:, :, None], sines[positions_BT][:, :, None]


def rotated(x_BTHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate dimension d with d + D/2 by the angles of `Rotary.at`, in float32 or wider."""
    cosine, sine = turn
    wide = x_BTHD.to(torch.promote_types(x_BTHD.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat([-second, first], dim=-1) * sine).to(x_BTHD.dtype)
