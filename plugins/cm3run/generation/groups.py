"""Groups of a batch: requests whose next tokens are drawn in one sampler call; the repetition penalty.

The penalty lowers the logits of tokens that a request has read or drawn. Keskar et al. 2019 (CTRL, arXiv:1909.05858),
section 4.1, as in transformers' `RepetitionPenaltyLogitsProcessor`: positive logits are divided by the penalty,
negative ones multiplied.

Legend: n requests of a group, G guidance streams, S stream rows of the batch, m draws, E model
dimension, R ids of a legal slice; a suffix g stands for the stream rows of one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cm3core.document import BoolArray, IntArray
from cm3core.interfaces.component import broken
from cm3core.interfaces.sampler import share_draws
from cm3run.faults import raise_interrupt
from cm3run.generation.events import wrong_request
from cm3run.generation.sampling import StateTable, reads_stream

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import InferenceDecoder
    from cm3core.interfaces.sampler import Sampler, SamplingPlan
    from cm3core.sequence.grammar import LegalIds
    from cm3run.generation.row import ActiveRequest
    from cm3run.generation.sampling import Form


@dataclass(eq=False)
class RepetitionPenalty:
    """The tokens penalised in the rows of a group, and the penalty factors.

    Args:
        factor_g1: float32; the penalty of each stream row's request.
        owner_g: int64; the request of each stream row.
        seen_nR: bool; the ids that each request has read or drawn.
    """

    factor_g1: Tensor
    owner_g: Tensor
    seen_nR: Tensor

    @classmethod
    def of(
        cls,
        rows: Sequence[ActiveRequest],
        owners: Sequence[int],
        ids: range,
        device: torch.device,
    ) -> RepetitionPenalty | None:
        """The penalty for some requests; None if none of them has one.

        Args:
            rows: the requests.
            owners: for each stream row, its request among them.
            ids: the slice.
        """
        factors = np.array([row.plan().repetition_penalty for row in rows], np.float32)
        if (factors == 1).all():
            return None
        seen_nR: BoolArray = np.zeros((len(rows), len(ids)), np.bool_)
        for place, row in enumerate(rows):
            tokens = seen_by(row)
            seen_nR[place, tokens[(tokens >= ids.start) & (tokens < ids.stop)] - ids.start] = True
        owner_g = np.asarray(owners, np.int64)
        return cls(
            torch.from_numpy(factors[owner_g][:, None]).to(device),
            torch.from_numpy(owner_g).to(device),
            torch.from_numpy(seen_nR).to(device),
        )

    def penalised(self, logits_gR: Tensor) -> Tensor:
        """The logits [g, R] with the penalty applied, as a new tensor."""
        smaller_gR = torch.where(
            logits_gR > 0, logits_gR / self.factor_g1, logits_gR * self.factor_g1
        )
        return torch.where(self.seen_nR[self.owner_g], smaller_gR, logits_gR)

    def add(self, index_n: Tensor) -> None:
        """Add each request's drawn token, given as an index into the slice."""
        self.seen_nR[torch.arange(len(index_n), device=index_n.device), index_n] = True


def seen_by(row: ActiveRequest) -> IntArray:
    """The ids int32 that a request has read in its fullest prompt, or drawn."""
    prompt = row.prompts[row.local[row.plan().reference]].tokens
    drawn = [np.asarray(row.grammar.current, np.int32), *row.grammar.contents]
    return np.concatenate([prompt, *drawn]).astype(np.int32)


class Tables(NamedTuple):
    """The sampler's inputs besides logits and plans, for n requests: see `Sampler.draw`."""

    stream_rows_nG: Tensor
    weights_nG: Tensor
    allowed_nR: Tensor | None
    seed_n: Tensor
    position_n: Tensor

    def of(self, part: slice) -> Tables:
        """The tables of some of the requests."""
        allowed_nR = None if self.allowed_nR is None else self.allowed_nR[part]
        return Tables(
            self.stream_rows_nG[part],
            self.weights_nG[part],
            allowed_nR,
            self.seed_n[part],
            self.position_n[part],
        )


class Drawn(NamedTuple):
    """What is recorded of a draw: log-probabilities of the tokens under the reference stream [n] and under the
    sampling policy [n], and the ids that passed the filters, bool [n, R]."""

    raw_n: Tensor
    policy_n: Tensor
    kept_nR: Tensor


@dataclass(eq=False)
class Group:
    """Requests drawn in one call: same modality, samplers that can draw for each other.

    Args:
        rows: its requests.
        ids: the slice of the vocabulary that covers all their legal ids.
        sampler: draws for all of them.
        plans: one per request.
        rows_g: stream rows whose logits are needed, int64; None: all rows of the batch.
        stream_rows_nG: for each request, the rows of its streams within `rows_g`; -1 for a stream
            that is absent or has zero weight.
        reference_n: the row of each request's reference stream within `rows_g`.
        allowed_nR: the ids each request may draw; None: all.
        seed_n: each request's seed.
        index_n: each request's position in the batch.
        host: untouched copies of `stream_rows_nG` and `allowed_nR`, in case a sampler writes to them.
        states: the requests' sampler states, if the sampler has any.
        drawn: records of the draws since it was last emptied. None: not recording.
        penalty: the repetition penalty. None: no request has one.
    """

    rows: list[ActiveRequest]
    ids: range
    sampler: Sampler
    plans: tuple[SamplingPlan, ...]
    rows_g: Tensor | None
    stream_rows_nG: Tensor
    reference_n: Tensor
    allowed_nR: Tensor | None
    seed_n: Tensor
    index_n: Tensor
    host: tuple[IntArray, BoolArray | None]
    states: StateTable | None = None
    drawn: list[Drawn] | None = None
    penalty: RepetitionPenalty | None = None
    #: Draws at once -> each request's plan as often. Samplers keep what they make of the same tuple.
    _repeated: dict[int, tuple[SamplingPlan, ...]] = field(default_factory=dict)

    def _plans_of(self, num: int) -> tuple[SamplingPlan, ...]:
        if num not in self._repeated:
            self._repeated[num] = tuple(plan for plan in self.plans for _ in range(num))
        return self._repeated[num]

    @property
    def remembers(self) -> bool:
        """Whether it holds anything that draws change."""
        return not (self.states is None and self.drawn is None and self.penalty is None)

    def weights(self, num: int) -> Tensor:
        """Stream weights for the next `num` draws, float32 [m, n, G]."""
        G = self.stream_rows_nG.shape[1]
        weights_nmG = np.zeros((len(self.rows), num, G), np.float32)
        for index, row in enumerate(self.rows):
            own = row.weights(num)
            weights_nmG[index, :, : own.shape[1]] = own
        return torch.from_numpy(weights_nmG.swapaxes(0, 1).copy()).to(self.index_n.device)

    def draw(
        self,
        decoder: InferenceDecoder,
        hidden_SE: Tensor,
        weights_nG: Tensor,
        position_n: Tensor,
        cell_n: Tensor | None = None,
        step: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw the next tokens.

        Args:
            decoder: its head turns hidden states into logits.
            hidden_SE: hidden states of all stream rows of the batch.
            weights_nG: one step of `weights`.
            position_n: number of tokens drawn so far, for the group's requests or for all requests
                of the batch.
            cell_n: raster index of the cell that each request of the batch draws, -1 for text; needed only
                with `states`.
            step: number of draws not yet counted in the requests' `num_drawn`. None: the draw is being captured, and a
                sampler's error is raised.

        Returns:
            the tokens, int64 [n], and their log-probability under the reference stream, float64
            [n].
        """
        hidden_gE = hidden_SE if self.rows_g is None else hidden_SE[self.rows_g]
        logits_gR = decoder.logits(hidden_gE, self.ids).float()
        position_n = position_n if len(position_n) == len(self.rows) else position_n[self.index_n]
        if self.states is not None:
            assert cell_n is not None
            self.states.cell_n = cell_n[self.index_n]
        used_gR = self._penalised(logits_gR)
        tables = Tables(self.stream_rows_nG, weights_nG, self.allowed_nR, self.seed_n, position_n)
        try:
            tokens_n = self._call(used_gR, slice(None), tables)
        except BaseException as error:  # samplers can be third-party code
            raise_interrupt(error)
            if step is None:
                raise
            # discard whatever the failed call wrote
            logits_gR = decoder.logits(hidden_gE, self.ids).float()
            used_gR = self._penalised(logits_gR)
            tables = self._tables_anew(step)
            self.stream_rows_nG, self.allowed_nR = tables.stream_rows_nG, tables.allowed_nR
            self.seed_n = tables.seed_n
            tokens_n = self._one_by_one(used_gR, step, error)
        if self.penalty is not None:
            self.penalty.add(self.clamped(tokens_n) - self.ids.start)
        if self.states is not None:
            self.states.record(self.clamped(tokens_n), tables.position_n)
        log_n = _log_probability(
            logits_gR[self.reference_n], self.allowed_nR, tokens_n - self.ids.start
        )
        if self.drawn is not None:
            self.drawn.append(self._recorded(used_gR, tables.weights_nG, tokens_n, log_n))
        return tokens_n, log_n

    def _penalised(self, logits_gR: Tensor) -> Tensor:
        return logits_gR if self.penalty is None else self.penalty.penalised(logits_gR)

    def draw_ahead(
        self,
        decoder: InferenceDecoder,
        hidden_SwE: Tensor,
        position_n: Tensor,
        weights_wnG: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Draw at several positions at once, each as if its request had reached it. Draws after a wrong guess are
        meaningless.

        Args:
            decoder: its head turns hidden states into logits.
            hidden_SwE: hidden states of all stream rows of the batch, before each of the w draws.
            position_n: number of tokens drawn before the first of them, for all requests of the batch.
            weights_wnG: `weights` of w draws.

        Returns:
            the tokens, int64 [n, w], and their log-probability under the reference stream, float64 [n, w].
        """
        hidden_gwE = hidden_SwE if self.rows_g is None else hidden_SwE[self.rows_g]
        (n, G), w = self.stream_rows_nG.shape, hidden_SwE.shape[1]
        R, device = len(self.ids), self.index_n.device
        logits_gwR = decoder.logits(hidden_gwE.flatten(0, 1), self.ids).float()
        each_w = torch.arange(w, device=device)
        rows_nwG = self.stream_rows_nG[:, None] * w + each_w[:, None]
        rows_nwG = torch.where(self.stream_rows_nG[:, None] < 0, -1, rows_nwG)
        reference_nw = (self.reference_n[:, None] * w + each_w).flatten()
        allowed = None
        if self.allowed_nR is not None:
            allowed = self.allowed_nR[:, None].expand(n, w, R).reshape(n * w, R)
        tokens_nw = self.sampler.draw(
            logits_gwR,
            rows_nwG.reshape(n * w, G),
            weights_wnG.transpose(0, 1).reshape(n * w, G),
            self._plans_of(w),
            first_id=self.ids.start,
            allowed_nR=allowed,
            seed_n=self.seed_n.repeat_interleave(w),
            position_n=(position_n[self.index_n][:, None] + each_w).flatten(),
        )
        log_nw = _log_probability(logits_gwR[reference_nw], allowed, tokens_nw - self.ids.start)
        return tokens_nw.view(n, w), log_nw.view(n, w)

    def _recorded(
        self, logits_gR: Tensor, weights_nG: Tensor, tokens_n: Tensor, log_n: Tensor
    ) -> Drawn:
        """The draw's log-probabilities and the ids that passed the filters."""
        try:
            log_nR = self.sampler.draw_log_probabilities(
                logits_gR,
                self.stream_rows_nG,
                weights_nG,
                self.plans,
                first_id=self.ids.start,
                allowed_nR=self.allowed_nR,
            )
        except BaseException as error:  # samplers can be third-party code: fail only its requests
            raise_interrupt(error)
            for row in self.rows:
                row.error = row.error or wrong_request(row.number, error)
            log_nR = logits_gR.new_zeros(len(self.rows), len(self.ids))
        index_n1 = (self.clamped(tokens_n) - self.ids.start)[:, None]
        return Drawn(log_n, log_nR.gather(1, index_n1)[:, 0], log_nR > float("-inf"))

    def take_drawn(self, tokens_nm: IntArray) -> None:
        """Give each request the records of its last draws.

        Args:
            tokens_nm: the tokens drawn, for the group's requests.
        """
        if not self.drawn:
            return
        raw_nm, policy_nm, kept_nmR = (
            torch.stack(parts, dim=1).cpu().numpy() for parts in zip(*self.drawn, strict=True)
        )
        self.drawn.clear()
        for place, row in enumerate(self.rows):
            legal = row.grammar.legal
            own = slice(legal[0].start - self.ids.start, legal[-1].stop - self.ids.start)
            if row.trace is not None:
                row.trace.add(
                    tokens_nm[place], raw_nm[place], policy_nm[place], kept_nmR[place][:, own]
                )

    def clamped(self, tokens_n: Tensor) -> Tensor:
        """Clamp tokens to the group's slice, so that they can be fed.

        The grammar reports an id outside the slice when it receives it; until then the step must not break.
        """
        return tokens_n.clamp(self.ids.start, self.ids.stop - 1)

    def _tables_anew(self, step: int) -> Tables:
        """Build the tables of a draw again from the host's copies."""
        stream_rows_nG, allowed_nR = self.host
        device = self.index_n.device
        return Tables(
            index_tensor(stream_rows_nG.copy(), device),
            self.weights(step + 1)[step],
            None if allowed_nR is None else torch.from_numpy(allowed_nR.copy()).to(device),
            index_tensor([row.request.seed for row in self.rows], device),
            index_tensor([row.num_drawn + step for row in self.rows], device),
        )

    def _call(self, logits_gR: Tensor, part: slice, tables: Tables) -> Tensor:
        """Call the sampler for a part of the group, with that part's tables."""
        state = None if self.states is None else self.states.at(part)
        draw = (
            self.sampler.draw
            if state is None
            else partial(self.sampler.draw_with_state, state=state)
        )
        tokens_n = draw(
            logits_gR,
            tables.stream_rows_nG,
            tables.weights_nG,
            self.plans if part == slice(None) else self.plans[part],
            first_id=self.ids.start,
            allowed_nR=tables.allowed_nR,
            seed_n=tables.seed_n,
            position_n=tables.position_n,
        )
        expected = len(self.plans[part])
        if (
            not isinstance(tokens_n, Tensor)
            or tokens_n.shape != (expected,)
            or tokens_n.dtype != torch.int64
            or tokens_n.device != logits_gR.device
        ):
            where = ""
            shown = type(tokens_n).__name__
            if isinstance(tokens_n, Tensor):
                shown = f"{tokens_n.dtype} {list(tokens_n.shape)}"
                if tokens_n.device != logits_gR.device:
                    shown, where = f"{shown} on {tokens_n.device}", f" on {logits_gR.device}"
            raise broken(
                self.sampler,
                "only_legal_ids_are_drawn",
                f"it drew {shown}, not int64 [{expected}]{where}",
            )
        if self.states is not None and state is not None:
            self.states.keep(state, part)
        return tokens_n

    def _one_by_one(self, logits_gR: Tensor, step: int, error: BaseException) -> Tensor:
        """After a failed draw, find the requests that fail and let the others continue."""
        tokens: list[Tensor] = []
        for index, row in enumerate(self.rows):
            own: Tensor = torch.tensor([self.ids.start], device=self.index_n.device)
            if row.error is None:
                try:
                    if len(self.rows) == 1:
                        raise error
                    part = slice(index, index + 1)
                    own_tables = self._tables_anew(step).of(part)
                    own = self._call(logits_gR.clone(), part, own_tables)
                except BaseException as own_error:
                    raise_interrupt(own_error)
                    row.error = wrong_request(row.number, own_error)
            tokens.append(own)
        return torch.cat(tokens)


def groups_of(
    batch: Sequence[ActiveRequest], starts: Sequence[int], device: torch.device
) -> list[Group]:
    """The requests of a batch, grouped by the sampler call that draws for them.

    Args:
        batch: all requests of the batch.
        starts: the first stream row of each request, then the total number of rows.
        device: the decoder's.
    """
    together: list[list[int]] = []
    for place, row in enumerate(batch):
        for others in together:
            first = batch[others[0]]
            if (
                first.grammar.modality == row.grammar.modality
                and _form(first) == _form(row)
                and _share(first, row)
            ):
                others.append(place)
                break
        else:
            together.append([place])
    return [_group(places, batch, starts, device) for places in together]


def _share(one: ActiveRequest, other: ActiveRequest) -> bool:
    """Whether one call may draw for both. A sampler whose comparison fails draws alone."""
    try:
        return share_draws(one.sampler, other.sampler)
    except BaseException as error:
        raise_interrupt(error)
        return False


def _form(row: ActiveRequest) -> Form | None:
    """The form that requests must share to use one table of states; None: no state."""
    return None if row.state is None else row.state.form


def _group(
    places: list[int],
    batch: Sequence[ActiveRequest],
    starts: Sequence[int],
    device: torch.device,
) -> Group:
    """The group of the requests at `places` of the batch."""
    rows = [batch[place] for place in places]
    plans = tuple(row.plan() for row in rows)
    states = [row.state for row in rows if row.state is not None]
    wanted: dict[int, int] = {}
    stream_rows_nG = np.full((len(rows), max(len(plan.streams) for plan in plans)), -1)
    for index, (place, row, plan) in enumerate(zip(places, rows, plans, strict=True)):
        for stream in range(len(plan.streams)):
            if reads_stream(plan, stream):
                stream_row = starts[place] + row.local[stream]
                stream_rows_nG[index, stream] = wanted.setdefault(stream_row, len(wanted))
    reference_n = [stream_rows_nG[index, plan.reference] for index, plan in enumerate(plans)]
    everything = list(wanted) == list(range(starts[-1]))
    ids, allowed_nR = _legal([row.grammar.legal for row in rows])
    owners = np.zeros(len(wanted), np.int64)
    for index, own in enumerate(stream_rows_nG):
        owners[own[own >= 0]] = index
    return Group(
        rows,
        ids,
        rows[0].sampler,
        plans,
        None if everything else index_tensor(list(wanted), device),
        index_tensor(stream_rows_nG, device),
        index_tensor(reference_n, device),
        None if allowed_nR.all() else torch.from_numpy(allowed_nR).to(device),
        index_tensor([row.request.seed for row in rows], device),
        index_tensor(places, device),
        (stream_rows_nG.copy(), None if allowed_nR.all() else allowed_nR.copy()),
        StateTable(states, device) if states else None,
        [] if any(row.trace is not None for row in rows) else None,
        RepetitionPenalty.of(rows, owners.tolist(), ids, device),
    )


def _legal(legal: list[LegalIds]) -> tuple[range, BoolArray]:
    """The slice of the vocabulary that covers all legal ids, and each request's allowed ids [n, R]."""
    ids = range(min(own[0].start for own in legal), max(own[-1].stop for own in legal))
    allowed_nR: BoolArray = np.zeros((len(legal), len(ids)), np.bool_)
    for index, ranges in enumerate(legal):
        for own in ranges:
            allowed_nR[index, own.start - ids.start : own.stop - ids.start] = True
    return ids, allowed_nR


def index_tensor(values: Any, device: torch.device) -> Tensor:
    """Integers as an int64 tensor on a device."""
    return torch.from_numpy(np.asarray(values, np.int64)).to(device)


def _log_probability(logits_nR: Tensor, allowed_nR: Tensor | None, index_n: Tensor) -> Tensor:
    """Log-probability, float64 [n], of one id per row over its allowed ids."""
    if allowed_nR is not None:
        logits_nR = logits_nR.masked_fill(~allowed_nR, float("-inf"))
    # the grammar reports an id outside the slice when it receives it
    inside_n = index_n.clamp(0, logits_nR.shape[1] - 1)
    return (logits_nR.gather(1, inside_n[:, None])[:, 0] - logits_nR.logsumexp(dim=1)).double()
