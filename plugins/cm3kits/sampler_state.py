"""Laws of sampler states: each request has its own state, and nothing is stored elsewhere.

Part of the conformance kit of samplers (`cm3kits.sampler`). They also hold for samplers without state,
which may remember nothing.

A request's state affects its draws only if it decides which ids are left. So there are many codes, with the
distributions of `cm3kits.strategies.shaped`, of low and high entropy, so that thresholds of a few bits and
of many exclude some.

Legend: n requests, S stream rows, G guidance streams, R ids of the legal slice, C cells, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from hypothesis import strategies as st
from torch import Tensor

from cm3core.interfaces.sampler import Sampler, SamplingPlan, StatefulSampler
from cm3core.interfaces.sampler_state import (
    DrawState,
    RequestStart,
    flat_state,
    stacked,
)
from cm3kits._config_laws import ConfigLaws
from cm3kits._findings import same
from cm3kits._laws import presupposes
from cm3kits._threads import at_once
from cm3kits.strategies import shaped

#: Grid of the pictures, and number of image codes: 12 bits, which thresholds of 16 bits reach within a
#: picture.
GRID, NUM_CODES = (4, 4), 4096
#: Number of codes for samplers without state, which store nothing.
_FEW_CODES = 64
#: Number of codes in half of the runs of samplers with state.
_SOME_CODES = 256
_SHAPES = ("flat", "power", "few", "mixed")
#: Id of image code 0.
FIRST_ID = 20


#: Laws that draws of every state presuppose.
_CAUSES = (
    "only_legal_ids_are_drawn",
    "global_generators_are_left_alone",
    "inputs_are_not_written_to",
)


class StateLaws(ConfigLaws[Sampler]):
    """Laws of `draw_with_state` and `initial_state`, over runs of several draws."""

    @presupposes(*_CAUSES)
    def law_a_state_does_not_depend_on_its_place(self, data: st.DataObject) -> None:
        """A request draws the same codes, and has the same state, alone as in a batch."""
        run = _Run(self.subject, data)
        everyone = list(range(run.n))
        together = run.start(everyone)
        drawn_nT = run.steps(together, everyone, range(run.length))
        place = data.draw(st.integers(0, run.n - 1))
        alone = run.start([place])
        did = f"drew {run.length} codes of request {place} alone, and among {run.n}"
        mine = run.steps(alone, [place], range(run.length))[0]
        same(mine, drawn_nT[place], f"{did}: the codes", next_step=_KEEP)
        for name, value in alone.values().items():
            wanted = together.values()[name][place]
            same(value[0], wanted, f"{did}: state[{name!r}]", tolerance=1e-5, next_step=_KEEP)

    @presupposes("a_state_does_not_depend_on_its_place", *_CAUSES)
    def law_a_forked_request_continues_alike(self, data: st.DataObject) -> None:
        """A copy of a request continues like the request, and does not affect it.

        With another seed, the copy diverges, and the request still continues as before.
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
            did = f"forked a request after {middle} of {run.length} codes, and drew on"
            same(first, alone, f"{did} beside its copy, and alone", next_step=_KEEP)
            if seed is None:
                same(second, alone, f"{did}: the copy, and the request alone", next_step=_KEEP)

    @presupposes(*_CAUSES)
    def law_a_request_starts_afresh(self, data: st.DataObject) -> None:
        """Equal requests start with equal states and draw the same codes, whatever was drawn before."""
        run = _Run(self.subject, data)
        everyone = list(range(run.n))
        first = run.start(everyone)
        before = {name: value.clone() for name, value in first.values().items()}
        drawn = run.steps(first, everyone, range(run.length))
        again = run.start(everyone)
        same(again.values(), before, "started equal requests, before and after others drew")
        codes = run.steps(again, everyone, range(run.length))
        did = f"drew {run.length} codes of {run.n} requests, and those of equal requests after them"
        same(codes, drawn, did, next_step=_KEEP)

    @presupposes("a_state_does_not_depend_on_its_place", *_CAUSES)
    def law_threads_do_not_disturb_each_other(self, data: st.DataObject) -> None:
        """Two threads that draw at the same time, each for its own requests, draw what each draws alone, since a
        server has several batches."""
        runs = [_Run(self.subject, data, most_draws=5, most_ids=_SOME_CODES) for _ in range(2)]

        def drawn(run: _Run) -> list[list[int]]:
            everyone = list(range(run.n))
            return run.steps(run.start(everyone), everyone, range(run.length))

        alone = [drawn(run) for run in runs]
        together = at_once(*(partial(drawn, run) for run in runs))
        did = "drew in two threads at once, and one after the other"
        same(together, alone, did, next_step=_KEEP)


#: Next step if requests share state.
_KEEP = (
    "store each request's state in its row of the state, and nothing on the sampler: it "
    "serves many requests, in any order"
)


class _Run:
    """Requests of a sampler and its candidates, with logits for several draws."""

    def __init__(
        self,
        sampler: Sampler,
        data: st.DataObject,
        most_draws: int = GRID[0] * GRID[1],
        most_ids: int = NUM_CODES,
    ) -> None:
        remembers = isinstance(sampler, StatefulSampler)
        self.sampler, self.n = sampler, data.draw(st.integers(1, 3), label="requests")
        lengths = sorted({most_draws, 5, 2}, reverse=True) if remembers else [3, 2]
        self.length = data.draw(st.sampled_from(lengths), label="draws")
        sizes = sorted({most_ids, _SOME_CODES}, reverse=True) if remembers else [_FEW_CODES]
        num_ids = data.draw(st.sampled_from(sizes), label="ids")
        candidates = [sampler.for_candidate(index) for index in range(4)]
        sharing = [sampler, *(other for other in candidates if sampler.draws_with(other))]
        self.own = [data.draw(st.sampled_from(sharing)) for _ in range(self.n)]
        self.plans: list[SamplingPlan] = [own.plan("image") for own in self.own]
        self.G = max(len(plan.streams) for plan in self.plans)
        self.shapes = [
            data.draw(st.sampled_from(_SHAPES), label=f"distribution of request {place}")
            for place in range(self.n)
        ]
        generator = torch.Generator().manual_seed(
            data.draw(st.integers(0, 2**31), label="seed of logits")
        )
        self.logits_TnGR = torch.empty(self.length, self.n, self.G, num_ids)
        for step in range(self.length):
            for place, shape in enumerate(self.shapes):
                if shape == "mixed":
                    number = int(torch.randint(6, (), generator=generator))
                    shape = ("flat", "power", "few", "few", "sure", "sure")[number]
                own_R = shaped(shape, num_ids, generator)
                noise_GR = 0.1 * torch.randn(self.G, num_ids, generator=generator)
                self.logits_TnGR[step, place] = own_R + noise_GR

    def start(self, places: Sequence[int]) -> DrawState:
        """Return the state of these requests before their first draw."""
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
        """Draw `steps` for the requests at `places`, updating their state; returns codes by row."""
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
        """Draw once; the cell is the step's number."""
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
