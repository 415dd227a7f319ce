"""Rotary positions (Su et al. 2021, arXiv:2104.09864), of the sequence or of a picture's cells.

Legend: B rows, T tokens, H heads, D head size, P positions, C cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Rotary(ABC):
    """Cosines and sines of the angles by which queries and keys turn; float32, made once a device."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.head_dim, self.theta = head_dim, theta
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, T, 1, D] of tokens.

        Args:
            positions_BT: int64, in the sequence.
            cells_BT: int64; raster index of an image code in its picture, -1 elsewhere. None: all
                -1.
        """

    @abstractmethod
    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All cosines and sines [number, D]."""

    def rows(self, indices_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B, T, 1, D] of the tables."""
        device = indices_BT.device
        if device not in self._tables:
            self._tables[device] = self.table(device)
        cosines, sines = self._tables[device]
        return cosines[indices_BT][:, :, None], sines[indices_BT][:, :, None]

    def angles(self, count: int, size: int, device: torch.device) -> Tensor:
        """Angles [count, size / 2] of the positions 0..count-1 in `size` dimensions."""
        even = torch.arange(0, size, 2, dtype=torch.float32, device=device)
        frequency = 1.0 / (self.theta ** (even / size))
        return torch.arange(count, device=device).float()[:, None] * frequency


class SequenceRotary(Rotary):
    """Turned by the position in the sequence."""

    def __init__(self, num_positions: int, head_dim: int, theta: float) -> None:
        super().__init__(head_dim, theta)
        self.num_positions = num_positions

    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.rows(positions_BT)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        angle_PD = self.angles(self.num_positions, self.head_dim, device).repeat(1, 2)
        return angle_PD.cos(), angle_PD.sin()


class GridRotary(Rotary):
    """Half of the angles turned by the row of an image code's cell, half by its column.

    Of other tokens cosines and sines are zero, and with them queries and keys: they see all others
    alike, and are seen so. That is how LlamaGen (arXiv:2406.06525; FoundationVision/LlamaGen,
    `autoregressive/models/gpt.py`) treats the tokens of its condition.
    """

    def __init__(self, grid: tuple[int, int], head_dim: int, theta: float) -> None:
        super().__init__(head_dim, theta)
        self.grid = grid

    def of_tokens(self, positions_BT: Tensor, cells_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        # the last row, which -1 names, is that of tokens without a cell
        cells_BT = torch.full_like(positions_BT, -1) if cells_BT is None else cells_BT
        return self.rows(cells_BT)

    def table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rows, columns = self.grid
        of_row, of_column = (self.angles(n, self.head_dim // 2, device) for n in self.grid)
        cell_C = torch.arange(rows * columns, device=device)
        angle_CD = torch.cat([of_row[cell_C // columns], of_column[cell_C % columns]], -1)
        angle_CD = angle_CD.repeat(1, 2)
        none_1D = angle_CD.new_zeros(1, self.head_dim)
        return torch.cat([angle_CD.cos(), none_1D]), torch.cat([angle_CD.sin(), none_1D])


def rotated(x_BTHD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate dimension d with d + D/2 by the angles of `Rotary.of_tokens`, in float32 or wider."""
    cosine, sine = turn
    wide = x_BTHD.to(torch.promote_types(x_BTHD.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat([-second, first], dim=-1) * sine).to(x_BTHD.dtype)
