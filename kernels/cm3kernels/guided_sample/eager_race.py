"""The race that decides a draw in `eager.py`.

Legend: n requests, V ids of the slice, M ids considered, L kept ids of all requests together, a
positions ahead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cm3kernels.guided_sample.philox import philox4x32
from cm3kernels.guided_sample.reference import log_survival, log_survival_of

#: Up to this many ids of all requests, a race of all costs less than selecting those that take
#: part.
SMALL = 8192
#: Positions whose random numbers are then made at once.
AHEAD = 16


@dataclass(frozen=True)
class Kept:
    """What the filters leave, of M ids of each request.

    Args:
        score_nM: float64; (x - largest x) / temperature.
        mass_nM: float64; exp of the score, 0 where an id is not kept.
        num_kept: upper bound, of all requests together; None: not counted.
        column_nM: columns of the M ids among the V; None: M is V.
    """

    score_nM: Tensor
    mass_nM: Tensor
    num_kept: int | None
    column_nM: Tensor | None

    def log_probability(self, column_n: Tensor) -> Tensor:
        """Of one id of each request, float64 [n]."""
        place_n1 = column_n[:, None]
        if self.column_nM is not None:
            place_n1 = (self.column_nM == place_n1).int().argmax(dim=1, keepdim=True)
        return self.score_nM.gather(1, place_n1)[:, 0] - self.mass_nM.sum(dim=1).log_()


def race(
    kept: Kept, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Columns drawn, int64 [n], of equal scores the lowest id; and every id's score, float64 [n,
    V], where all take part."""
    num_ids = len(seed_n) * V
    if kept.column_nM is not None:
        return _race_in_columns(kept.mass_nM, kept.column_nM, V, first_id, seed_n, position_n), None
    if num_ids <= SMALL:
        ahead = _survival_ahead(tuple(seed_n.tolist()), first_id, V, seed_n.device)
        score_nV = ahead.at(position_n).div(kept.mass_nM)
    elif kept.num_kept is not None and 8 * kept.num_kept <= num_ids:
        return _race_of_few(kept.mass_nM, V, first_id, seed_n, position_n), None
    else:
        score_nV = log_survival(seed_n, position_n, first_id, V).div_(kept.mass_nM)
    return score_nV.argmax(dim=1), score_nV


class SurvivalAhead:
    """`log_survival` of some requests. Where ids are few, `AHEAD` positions cost about four times
    as much as one, and an engine requests one after the other: when the second in a row is
    requested, those that follow are made with it."""

    def __init__(self, seeds: tuple[int, ...], first_id: int, V: int, device: torch.device) -> None:
        self._seeds, self._first_id, self._V = seeds, first_id, V
        self._made: tuple[list[int], Tensor] = (
            [-2] * len(seeds),
            torch.empty(0, len(seeds), V, device=device),
        )

    def at(self, position_n: Tensor) -> Tensor:
        """float64 [n, V]; must not be written to."""
        # read atomically: there may be several threads
        (starts, made_anV), positions = self._made, position_n.tolist()
        steps = {position - start for position, start in zip(positions, starts, strict=True)}
        step = steps.pop() if len(steps) == 1 else -1
        if not 0 <= step < len(made_anV):
            num, step = AHEAD if step == len(made_anV) else 1, 0
            seed_an = torch.tensor(self._seeds, device=made_anV.device).expand(num, -1).flatten()
            position_an = (
                torch.arange(num, device=made_anV.device)[:, None] + position_n
            ).flatten()
            made_anV = log_survival(seed_an, position_an, self._first_id, self._V).view(
                num, -1, self._V
            )
            self._made = positions, made_anV
        return made_anV[step]


_survival_ahead = lru_cache(maxsize=4)(SurvivalAhead)


def _race_in_columns(
    mass_nM: Tensor, column_nM: Tensor, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> Tensor:
    """`race` among some columns of each request."""
    id_nM = column_nM + first_id
    bits_nM4 = philox4x32(seed_n, id_nM >> 2, position_n)
    score_nM = log_survival_of(bits_nM4.gather(2, (id_nM & 3)[..., None])[..., 0]).div_(mass_nM)
    return torch.where(score_nM == score_nM.amax(dim=1, keepdim=True), column_nM, V).amin(dim=1)


def _race_of_few(
    mass_nV: Tensor, V: int, first_id: int, seed_n: Tensor, position_n: Tensor
) -> Tensor:
    """`race` among the ids that have a mass, of all requests in one row."""
    index_L = mass_nV.view(-1).nonzero()[:, 0]
    row_L = index_L // V
    column_L = index_L - row_L * V
    id_L = column_L + first_id
    bits_L4 = philox4x32(seed_n[row_L], id_L[:, None] >> 2, position_n[row_L])[:, 0]
    score_L = log_survival_of(bits_L4.gather(1, (id_L & 3)[:, None])[:, 0]).div_(
        mass_nV.view(-1)[index_L]
    )
    best_n = torch.full_like(mass_nV[:, 0], -math.inf).scatter_reduce_(0, row_L, score_L, "amax")
    column_L = torch.where(score_L == best_n[row_L], column_L, V)
    return torch.full_like(seed_n, V).scatter_reduce_(0, row_L, column_L, "amin")
