"""Inputs of samplers: plans as tensors, stream weights at positions, and state.

A sampler's state is stored per request and gathered into tables for the calls of a group. A table is built from the
requests' states whenever they are regrouped (a request joined, left or reached another kind of position); between
regroupings it stays on the device.

Legend: n requests of a group, G guidance streams, C cells of a picture, T tokens that can be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cm3core.document import Codes, IntArray
from cm3core.interfaces.sampler import Filters, SamplingPlan
from cm3core.interfaces.sampler_state import DrawState, flat_state, stacked
from cm3core.sequence.grammar import num_draws

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import StatefulSampler
    from cm3core.interfaces.sampler_state import RequestStart
    from cm3core.sequence.grammar import HoleGrammar


def plan_columns(plans: Sequence[SamplingPlan], device: torch.device) -> dict[str, Any]:
    """Reference streams and filters of plans, as tensors [n].

    These are keyword arguments of `cm3kernels.guided_sample`. A filter that is off for all requests
    is omitted and costs nothing. Samplers apply filters other than those of `Filters` themselves.

    >>> plans = [SamplingPlan((), filters=Filters(top_k=5)), SamplingPlan(())]
    >>> plan_columns(plans, torch.device("cpu"))
    {'reference_n': tensor([0, 0]), 'top_k_n': tensor([5, 0])}
    """
    columns = {
        "reference_n": torch.tensor(
            [plan.reference for plan in plans], dtype=torch.int64, device=device
        )
    }
    for item in fields(Filters):
        values = [getattr(plan.filters, item.name) for plan in plans]
        if any(value != item.default for value in values):
            dtype = torch.int64 if isinstance(item.default, int) else torch.float32
            columns[f"{item.name}_n"] = torch.tensor(values, dtype=dtype, device=device)
    return columns


def stream_weights(plan: SamplingPlan, first: int, last: int, num: int) -> npt.NDArray[np.float32]:
    """Weights [num, G] of a plan's streams at `num` positions of a hole, scaled by its schedule.

    Args:
        plan: of the hole's modality.
        first: index of the first position in its hole.
        last: index of the hole's last position.
        num: number of positions.
    """
    full = np.array([stream.weight for stream in plan.streams], np.float32)
    if plan.schedule is None:
        return np.broadcast_to(full, (num, len(full)))
    only = np.zeros(len(full), np.float32)
    only[plan.reference] = 1.0
    shares = [
        plan.schedule.share(min(position / max(last, 1), 1.0))
        for position in range(first, first + num)
    ]
    share = np.array(shares, np.float32)[:, None]
    return only + share * (full - only)


def reads_stream(plan: SamplingPlan, stream: int) -> bool:
    """Whether a plan needs a stream's logits: for its weight, or for the plausibility filter."""
    return plan.streams[stream].weight != 0 or stream == plan.reference


#: Names, shapes and types of a state: requests share a table if these are equal.
Form: TypeAlias = tuple[tuple[str, torch.Size, torch.dtype], ...]


class RequestState:
    """A stateful sampler's state for one request.

    Args:
        sampler: gives the initial state.
        start: the request.
        grammar: its position in its holes.
    """

    def __init__(self, sampler: StatefulSampler, start: RequestStart, grammar: HoleGrammar) -> None:
        self.document, self.grid, self.grammar = start.document, start.grid, grammar
        self._values: dict[str, Tensor] = flat_state(sampler.initial_state(start))
        self._table: tuple[StateTable, int] | None = None
        self.form: Form = tuple(
            (name, value.shape, value.dtype) for name, value in sorted(self._values.items())
        )
        #: Ids drawn so far.
        self.drawn: list[IntArray] = []

    def values(self) -> dict[str, Tensor]:
        """The current state, by full name."""
        if self._table is None:
            return self._values
        table, place = self._table
        return {name: value[place] for name, value in table.values.items()}

    def move(self, table: StateTable, place: int) -> None:
        """Make the state a row of `table`."""
        self._table, self._values = (table, place), {}

    def picture(self) -> npt.NDArray[np.int64]:
        """Codes of the picture being filled, -1 where not yet drawn, int64 [C]."""
        num_rows, num_columns = self.grid
        codes = np.full(num_rows * num_columns, -1, np.int64)
        grammar = self.grammar
        if grammar.modality == "text":
            return codes
        segment = self.document[grammar.hole.segment]
        if isinstance(segment, Codes):
            given = np.ones(len(codes), np.bool_) if segment.missing is None else ~segment.missing
            codes[given] = segment.codes[given]
        filled = [*grammar.contents, np.asarray(grammar.current, np.int32)]
        for hole, content in zip(grammar.holes, filled, strict=False):  # later holes are empty
            if hole.segment == grammar.hole.segment and hole.cells is not None:
                codes[hole.cells[: len(content)]] = grammar.vocabulary.to_codes(content)
        return codes


class StateTable:
    """The states and drawn tokens of a group's requests, on the decoder's device.

    Args:
        states: of the group's requests, all of the same form and at positions of one modality.
        device: the decoder's.
    """

    def __init__(self, states: Sequence[RequestState], device: torch.device) -> None:
        grammar = states[0].grammar
        self.grid, vocabulary = states[0].grid, grammar.vocabulary
        self._image_start = vocabulary.image.start
        #: Code of each image id, where it is not the id's index in the range.
        self._code_of: Tensor | None = None
        if not vocabulary.codes_in_order:
            ids = np.arange(vocabulary.image.start, vocabulary.image.stop)
            self._code_of = torch.from_numpy(vocabulary.to_codes(ids)).long().to(device)
        self._draws_codes = grammar.modality == "image"
        self.values: dict[str, Tensor] = {
            name: value.to(device)
            for name, value in stacked([state.values() for state in states]).items()
        }
        drawn_nT = np.full((len(states), max(num_draws(one.grammar.holes) for one in states)), -1)
        for place, state in enumerate(states):
            state.move(self, place)
            drawn = np.concatenate([np.zeros(0, np.int32), *state.drawn])
            drawn_nT[place, : len(drawn)] = drawn
        codes_nC = np.stack([state.picture() for state in states])
        #: Raster index of the cell that each request draws next, -1 for text; set before each draw.
        self.cell_n = torch.full((len(states),), -1, device=device)
        self._drawn_nT = torch.from_numpy(drawn_nT).to(device)
        self._codes_nC = torch.from_numpy(codes_nC).to(device)

    def at(self, part: slice) -> DrawState:
        """A copy of the rows `part` for one call, so that a failed draw changes nothing here."""
        return DrawState(
            {name: value[part].clone() for name, value in self.values.items()},
            grid=self.grid,
            cell_n=self.cell_n[part].clone(),
            codes_nC=self._codes_nC[part].clone(),
            drawn_nT=self._drawn_nT[part].clone(),
        )

    def keep(self, state: DrawState, part: slice) -> None:
        """Replace the rows `part` by the result of a draw."""
        for name, value in state.values().items():
            self.values[name][part] = value

    def record(self, tokens_n: Tensor, position_n: Tensor) -> None:
        """Add the tokens drawn at these positions."""
        self._drawn_nT.scatter_(1, position_n[:, None], tokens_n[:, None])
        if self._draws_codes:
            codes_n = tokens_n - self._image_start
            if self._code_of is not None:
                codes_n = self._code_of[codes_n]
            self._codes_nC.scatter_(1, self.cell_n[:, None], codes_n[:, None])
