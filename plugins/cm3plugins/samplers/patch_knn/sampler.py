"""The sampler that mixes another sampler's codes with codes from a memory's places.

An exact mixture doesn't need the inner sampler's probabilities: a share of the draws comes from the memory's
distribution, the rest from the inner sampler. So any sampler can be the inner one, and only that share of
the codes is looked up.

Legend: n requests, m of which draw from the memory, S stream rows, G guidance streams, R ids of
the legal slice, K codes around a place, N neighbours, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3core.interfaces.sampler import Sampler, SamplingPlan, StatefulSampler, share_draws
from cm3core.interfaces.sampler_state import DrawState, InitialState, RequestStart
from cm3kernels import guided_sample
from cm3plugins.samplers.patch_knn.database import AROUND, PlaceDatabase

#: Changes a request's seed for this sampler's draws, so they are independent of the inner sampler's.
_WHICH, _CODE = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51


@dataclass(frozen=True, kw_only=True)
class PatchKNNSettings:
    """Settings of draws from a memory; see `PatchKNNSamplerConfig`."""

    share: float
    neighbours: int
    scale: float
    combine: str


class PatchKNNSampler(StatefulSampler):
    """See `PatchKNNSamplerConfig`.

    Args:
        inner: any sampler.
        database: the memory's places.
        first_code: id of image code 0.
        settings: settings of draws from the memory.
    """

    def __init__(
        self,
        inner: Sampler,
        database: PlaceDatabase,
        first_code: int,
        settings: PatchKNNSettings,
    ) -> None:
        self.inner, self.database = inner, database
        self.first_code, self.settings = first_code, settings

    def plan(self, modality: str) -> SamplingPlan:
        """Return the inner sampler's plan."""
        return self.inner.plan(modality)

    def for_candidate(self, index: int) -> Sampler:
        """Wrap the inner sampler of the candidate."""
        return self._around(self.inner.for_candidate(index))

    def draws_with(self, other: Sampler) -> bool:
        """Whether memory and settings are the same, and the inner samplers draw together."""
        return (
            isinstance(other, PatchKNNSampler)
            and type(self) is type(other)
            and self.database is other.database
            and (self.first_code, self.settings) == (other.first_code, other.settings)
            and share_draws(self.inner, other.inner)
        )

    def initial_state(self, request: RequestStart) -> InitialState:
        """Return the inner sampler's state."""
        inner = self.inner
        return {"inner": inner.initial_state(request)} if isinstance(inner, StatefulSampler) else {}

    def draw_with_state(
        self,
        logits_SR: Tensor,
        stream_rows_nG: Tensor,
        weights_nG: Tensor,
        plans: Sequence[SamplingPlan],
        *,
        first_id: int,
        allowed_nR: Tensor | None,
        seed_n: Tensor,
        position_n: Tensor,
        state: DrawState,
    ) -> Tensor:
        """See `Sampler.draw_with_state`."""
        token_n = self.inner.draw_with_state(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            plans,
            first_id=first_id,
            allowed_nR=allowed_nR,
            seed_n=seed_n,
            position_n=position_n,
            state=state.part("inner"),
        )
        around_nK = state.codes_around(AROUND)
        row_m = self._drawn_from_memory(around_nK, seed_n, position_n)
        if not len(row_m):
            return token_n
        allowed_mR = None if allowed_nR is None else allowed_nR[row_m]
        logits_mR = self._slice(self.log_probabilities(around_nK[row_m]), first_id, logits_SR)
        legal_mR = logits_mR.isfinite() if allowed_mR is None else logits_mR.isfinite() & allowed_mR
        drawn_m = _draw(
            logits_mR.where(legal_mR.any(1)[:, None], 0.0),
            seed_n[row_m] ^ _CODE,
            position_n[row_m],
            first_id=first_id,
            allowed_nV=allowed_mR,
        )
        # if the memory has no legal code, keep the inner sampler's draw
        return token_n.index_put((row_m,), drawn_m.where(legal_mR.any(1), token_n[row_m]))

    def log_probabilities(self, around_mK: Tensor) -> Tensor:
        """Return log-probabilities of the memory's codes for these surroundings, float32 [m, V] on the CPU;
        -inf for codes that no neighbour has."""
        found = self.database.search(around_mK.cpu().numpy(), self.settings.neighbours)
        distance_mN, code_mN, count_mN = map(torch.from_numpy, found)
        # float64, because a sum's last bits depend on its order
        score_mN = (distance_mN[:, :1] - distance_mN).double() / self.settings.scale
        weight_mV = score_mN.new_zeros(len(around_mK), len(self.database.codebook_Vd))
        if self.settings.combine == "sum":
            weight_mV.scatter_add_(1, code_mN, score_mN.exp() * count_mN)
        else:
            weight_mV.scatter_reduce_(1, code_mN, score_mN.exp(), "amax")
        return (weight_mV / weight_mV.sum(1, keepdim=True)).log().float()

    def _drawn_from_memory(self, around_nK: Tensor, seed_n: Tensor, position_n: Tensor) -> Tensor:
        """Return indices int64 [m] of the requests whose code is drawn from the memory."""
        share = self.settings.share
        shares = [math.log(part) if part else -math.inf for part in (1 - share, share)]
        logits_n2 = torch.tensor(shares, device=seed_n.device).expand(len(seed_n), 2)
        which_n = _draw(logits_n2, seed_n ^ _WHICH, position_n)
        return ((which_n == 1) & (around_nK >= 0).all(1)).nonzero()[:, 0]

    def _slice(self, log_probability_mV: Tensor, first_id: int, logits_SR: Tensor) -> Tensor:
        """Return them as logits of the legal slice, [m, R]; -inf for ids that are not image codes."""
        num, size = len(log_probability_mV), logits_SR.shape[1]
        logits_mR = torch.full((num, size), -math.inf)
        start = first_id - self.first_code
        low, high = max(0, start), min(log_probability_mV.shape[1], start + size)
        if low < high:
            logits_mR[:, low - start : high - start] = log_probability_mV[:, low:high]
        return logits_mR.to(logits_SR.device)

    def _around(self, inner: Sampler) -> PatchKNNSampler:
        """Return a copy around another inner sampler."""
        if inner is self.inner:
            return self
        another = copy(self)  # of the same class, with all its attributes
        another.inner = inner
        return another


def _draw(
    logits_nR: Tensor,
    seed_n: Tensor,
    position_n: Tensor,
    *,
    first_id: int = 0,
    allowed_nV: Tensor | None = None,
) -> Tensor:
    """Draw once from each row."""
    row_n = torch.arange(len(logits_nR), device=logits_nR.device)
    return guided_sample(
        logits_nR.contiguous(),
        row_n[:, None],
        logits_nR.new_ones(len(row_n), 1),
        allowed_nV=allowed_nV,
        seed_n=seed_n,
        position_n=position_n,
        first_id=first_id,
    )
