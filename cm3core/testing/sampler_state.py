"""Laws of what a sampler remembers: each request has its own state, and nothing is kept elsewhere.

Part of the conformance kit of samplers (`cm3core.testing.sampler`). They hold for samplers without
state too: those may remember nothing.

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice, C cells, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3core.interfaces.sampler_state import (
    DrawState,
    RequestStart,
    flat_state,
    stacked,
)
from cm3core.interfaces.stateful_sampler import StatefulSampler
from cm3core.testing._laws import Contract
from cm3core.testing._threads import at_once

#: Grid of the pictures drawn, and number of image codes.
GRID, NUM_CODES = (2, 3), 9
#: Id of image code 0.
FIRST_ID = 20


class StateLaws(Contract[Sampler]):
    """Laws of `draw_with_state` and `initial_state`, over runs of several draws."""

    def law_a_state_does_not_depend_on_its_place(self, data: st.DataObject) -> None:
        """A request draws the same codes, and remembers the same, alone as in a batch."""
        run = _Run(self.subject, data)
        everyone = list(range(run.n))
        together = run.start(everyone)
        drawn_nT = run.steps(together, everyone, range(run.length))
        place = data.draw(st.integers(0, run.n - 1))
        alone = run.start([place])
        assert run.steps(alone, [place], range(run.length))[0] == drawn_nT[place]
        for name, value in alone.values().items():
            torch.testing.assert_close(value[0], together.values()[name][place])

    def law_a_forked_request_continues_alike(self, data: st.DataObject) -> None:
        """A copy of a request continues as the request does, and changes nothing for it.

        With another seed, it goes its own way, and the request still continues the same.
        """
        run = _Run(self.subject, data)
        everyone, place = list(range(run.n)), data.draw(st.integers(0, run.n - 1))
        middle = data.draw(st.integers(1, run.length - 1))
        state = run.start(everyone)
        run.steps(state, everyone, range(middle))
        rest = range(middle, run.length)
        for seed in (None, 1_000):
            forked = state.select(torch.tensor([place, place]))
            first, second = run.steps(forked, [place, place], rest, seed_of_last=seed)
            alone = run.steps(state.select(torch.tensor([place])), [place], rest)[0]
            assert first == alone
            assert seed is not None or second == alone

    def law_a_request_starts_afresh(self, data: st.DataObject) -> None:
        """Equal requests start with equal states and draw the same, whatever was drawn before."""
        run = _Run(self.subject, data)
        everyone = list(range(run.n))
        first = run.start(everyone)
        before = {name: value.clone() for name, value in first.values().items()}
        drawn = run.steps(first, everyone, range(run.length))
        again = run.start(everyone)
        assert again.values().keys() == before.keys()
        for name, value in again.values().items():
            assert torch.equal(value, before[name])
        assert run.steps(again, everyone, range(run.length)) == drawn

    def law_threads_do_not_disturb_each_other(self, data: st.DataObject) -> None:
        """Two threads that draw at once, each for its own requests, draw what each draws alone: a server
        has several batches."""
        runs = [_Run(self.subject, data) for _ in range(2)]

        def drawn(run: _Run) -> list[list[int]]:
            everyone = list(range(run.n))
            return run.steps(run.start(everyone), everyone, range(run.length))

        alone = [drawn(run) for run in runs]
        assert at_once(*(partial(drawn, run) for run in runs)) == alone


class _Run:
    """Requests of a sampler and its candidates, with logits for each of several draws."""

    def __init__(self, sampler: Sampler, data: st.DataObject) -> None:
        self.sampler, self.n = sampler, data.draw(st.integers(1, 4))
        self.length = data.draw(st.integers(2, GRID[0] * GRID[1]))
        candidates = [sampler.for_candidate(index) for index in range(4)]
        sharing = [sampler, *(other for other in candidates if sampler.draws_with(other))]
        self.own = [data.draw(st.sampled_from(sharing)) for _ in range(self.n)]
        self.plans: list[SamplingPlan] = [own.plan("image") for own in self.own]
        self.G = max(len(plan.streams) for plan in self.plans)
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        self.logits_TnGR = 2 * torch.randn(
            self.length, self.n, self.G, NUM_CODES, generator=generator
        )

    def start(self, places: Sequence[int]) -> DrawState:
        """The state of these requests before their first draw."""
        starts = [RequestStart(seed=place, grid=GRID) for place in places]
        flat = [
            flat_state(own.initial_state(start)) if isinstance(own, StatefulSampler) else {}
            for own, start in ((self.own[start.seed], start) for start in starts)
        ]
        num, num_cells = len(places), GRID[0] * GRID[1]
        return DrawState(
            stacked(flat),
            grid=GRID,
            cell_n=torch.zeros(num, dtype=torch.int64),
            codes_nC=torch.full((num, num_cells), -1),
            drawn_nT=torch.full((num, num_cells), -1),
        )

    def steps(
        self,
        state: DrawState,
        places: Sequence[int],
        steps: range,
        *,
        seed_of_last: int | None = None,
    ) -> list[list[int]]:
        """Draw `steps` for the requests at `places`, whose state changes; returns codes by row."""
        seed_n = torch.tensor(places)
        if seed_of_last is not None:
            seed_n[-1] = seed_of_last
        drawn: list[Tensor] = []
        for step in steps:
            token_n = self._draw(state, places, step, seed_n)
            state.drawn_nT[:, step] = token_n
            state.codes_nC[:, step] = token_n - FIRST_ID
            drawn.append(token_n - FIRST_ID)
        codes: list[list[int]] = torch.stack(drawn, dim=1).tolist()
        return codes

    def _draw(self, state: DrawState, places: Sequence[int], step: int, seed_n: Tensor) -> Tensor:
        """One draw; the cell drawn is the step's number."""
        num = len(places)
        state.cell_n.fill_(step)
        rows_nG, weights_nG = torch.full((num, self.G), -1), torch.zeros(num, self.G)
        for row, place in enumerate(places):
            weights = [stream.weight for stream in self.plans[place].streams]
            rows_nG[row, : len(weights)] = row * self.G + torch.arange(len(weights))
            weights_nG[row, : len(weights)] = torch.tensor(weights)
        return self.sampler.draw_with_state(
            self.logits_TnGR[step, list(places)].flatten(0, 1),
            rows_nG,
            weights_nG,
            tuple(self.plans[place] for place in places),
            first_id=FIRST_ID,
            allowed_nR=None,
            seed_n=seed_n,
            position_n=torch.full((num,), step),
            state=state,
        )
