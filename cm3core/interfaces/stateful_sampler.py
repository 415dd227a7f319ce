"""Samplers with state; the engine keeps it, see `cm3core.interfaces.sampler_state`.

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3core.interfaces.sampler_state import (
    DrawState,
    InitialState,
    RequestStart,
    flat_state,
    stacked,
)

if TYPE_CHECKING:
    from torch import Tensor


class StatefulSampler(Sampler):
    """A sampler that remembers something of each request, or looks at what a request has drawn.

    Everything that changes from draw to draw is in the state: an instance serves many requests at
    once, in any order, and results must not depend on which. A sampler that wraps others is one of
    these: it puts their `initial_state` under a name each, and passes them `state.part(name)`.
    """

    def initial_state(self, request: RequestStart) -> InitialState:
        """State of a request that starts; by default nothing of its own, only what it has drawn.

        Equal requests start equally. Samplers that share a call (`draws_with`) have states of the
        same names, shapes and types, or they don't share it.
        """
        return {}

    @abstractmethod
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

    def draw(
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
    ) -> Tensor:
        """Draw for requests that have just started. The engine calls `draw_with_state`."""
        starts = [
            flat_state(self.initial_state(RequestStart(seed=seed))) for seed in seed_n.tolist()
        ]
        none_n = seed_n.new_full((len(starts),), -1)
        state = DrawState(
            stacked(starts),
            grid=(0, 0),
            cell_n=none_n,
            codes_nC=none_n[:, None][:, :0],
            drawn_nT=none_n[:, None][:, :0],
        )
        return self.draw_with_state(
            logits_SR,
            stream_rows_nG,
            weights_nG,
            plans,
            first_id=first_id,
            allowed_nR=allowed_nR,
            seed_n=seed_n,
            position_n=position_n,
            state=state,
        )
