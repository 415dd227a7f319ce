"""The rows in flight: requests of any kind that draw their next tokens together, join and leave.

One forward a step for all guidance streams of all requests; the token drawn for a request goes to
all of its streams. The head runs over the ids that the grammar allows, apart for text and for
images: at image positions the image codes only. What a request draws depends on its own numbers
alone.

Legend: n requests, G guidance streams, S stream rows (at most n * G), m draws, E model dimension, R
ids of a legal slice; a suffix g stands for one group of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cm3core.document import NO_CELL, BoolArray, IntArray
from cm3core.errors import CM3Error, GenerationError
from cm3core.generation.cuda_graph import FEWEST_STEPS, RecordedStep, Recorder
from cm3core.generation.prompts import feed, read_prompts

if TYPE_CHECKING:
    from cm3core.generation.row import ActiveRequest
    from cm3core.interfaces.decoder import InferenceDecoder, KVCache
    from cm3core.interfaces.sampler import Sampler, SamplingPlan
    from cm3core.sequence.grammar import LegalIds


@dataclass(eq=False)
class Group:
    """Requests that draw in one call: of one modality, by samplers that draw for each other.

    Args:
        places: of its requests in the batch.
        ids: the slice of the vocabulary that covers all that is legal for them.
        sampler: draws for all of them.
        plans: one for each request.
        rows_g: stream rows whose logits are wanted, int64; None: all rows of the batch.
        stream_rows_nG: for each request the rows of its streams among those, -1 where there is
            none, or none that counts.
        reference_n: the row of its reference stream among those.
        allowed_nR: who may draw what; None: everything.
    """

    places: list[int]
    ids: range
    sampler: Sampler
    plans: tuple[SamplingPlan, ...]
    rows_g: Tensor | None
    stream_rows_nG: Tensor
    reference_n: Tensor
    allowed_nR: Tensor | None
    seed_n: Tensor
    index_n: Tensor


class Batch:
    """See the head of this file. Empty at first.

    Args:
        decoder: arranged for inference.
        record: records steps where the decoder's cache allows it. None: nothing is recorded.
    """

    def __init__(self, decoder: InferenceDecoder, record: Recorder | None = None) -> None:
        self.decoder, self._record = decoder, record
        self.rows: list[ActiveRequest] = []
        self._cache: KVCache | None = None
        self._device = decoder.device
        self._hidden_SE = torch.zeros(0)
        self._arrange()

    @property
    def num_rows(self) -> int:
        """Stream rows in flight."""
        return sum(len(row.prompts) for row in self.rows)

    # ---- joining and leaving

    def join(self, rows: Sequence[ActiveRequest]) -> None:
        """Read the prompts of `rows`; they take part from the next step on."""
        if not rows:
            return
        cache, hidden_SE = read_prompts(
            self.decoder, [prompt for row in rows for prompt in row.prompts]
        )
        if self._cache is None:
            self._cache, self._hidden_SE = cache, hidden_SE
        else:
            self._cache.join(cache)
            self._hidden_SE = torch.cat([self._hidden_SE, hidden_SE])
        self.rows = [*self.rows, *rows]
        self._cache.reserve(
            [row.new_tokens - row.num_fed for row in self.rows for _ in row.prompts]
        )
        self._arrange()

    def drop(self, leaving: Sequence[ActiveRequest]) -> None:
        """Free the rows of these requests. The last request takes the place of one that leaves, so
        that few keys move."""
        gone = {id(row) for row in leaving}
        if not any(id(row) in gone for row in self.rows):
            return
        assert self._cache is not None
        starts = np.cumsum([0, *(len(row.prompts) for row in self.rows)])
        order = list(range(len(self.rows)))
        for place in reversed(range(len(order))):
            if id(self.rows[order[place]]) not in gone:
                continue
            last = order[-1]
            if len(self.rows[last].prompts) == len(self.rows[order[place]].prompts):
                order[place] = last
                order.pop()
            else:
                order.pop(place)
        stream_rows = [
            stream for place in order for stream in range(starts[place], starts[place + 1])
        ]
        self.rows = [self.rows[place] for place in order]
        if self.rows:
            self._cache.select(stream_rows)
            self._hidden_SE = self._hidden_SE[self._tensor(stream_rows)]
        else:
            self._cache, self._hidden_SE = None, torch.zeros(0)
        self._arrange()

    def _arrange(self) -> None:
        """What depends on which rows there are."""
        counts = [len(row.prompts) for row in self.rows]
        self._starts = np.cumsum([0, *counts]).tolist()
        self._owner_S = self._tensor(np.repeat(np.arange(len(counts)), counts))
        self._groups: tuple[tuple[object, ...], list[Group]] | None = None
        self._recorded: tuple[Group, RecordedStep] | None = None

    # ---- a step

    def step(self, max_draws: int) -> list[IntArray]:
        """Draw until a row's grammar needs a look (at most `max_draws` times), record it in the
        grammars, feed what follows.

        Returns:
            for each request (in the order of `rows` before the call) what it drew, int32 [m]. Those
            that are done, and those whose `error` is set and that come to nothing, have left.
        """
        num = min(max_draws, *(row.grammar.num_draws for row in self.rows))
        cells_nm = np.stack([row.grammar.cells(num) for row in self.rows])
        tokens_nm = self._draw(num, cells_nm)
        queues: dict[int, tuple[IntArray, IntArray]] = {}
        for row, tokens, cells in zip(self.rows, tokens_nm, cells_nm, strict=True):
            if row.error is not None:
                continue
            try:
                forced = row.grammar.take(tokens)
            except CM3Error as error:
                row.error = wrong_request(row.number, error)
                continue
            row.num_drawn += num
            row.num_fed += num + len(forced)
            queues[id(row)] = (
                np.concatenate([tokens[-1:], forced]),
                np.concatenate([cells[-1:], np.full(len(forced), NO_CELL, np.int32)]),
            )
        self.drop([row for row in self.rows if row.error is not None or row.grammar.done])
        if self.rows:
            assert self._cache is not None
            owned = [queues[id(row)] for row in self.rows for _ in row.prompts]
            self._hidden_SE = feed(
                self.decoder,
                self._cache,
                [tokens for tokens, _ in owned],
                [cells for _, cells in owned],
            )
        return list(tokens_nm)

    def _draw(self, num: int, cells_nm: IntArray) -> IntArray:
        """The next `num` tokens of every row, int32 [n, num]; all but the last have been fed."""
        assert self._cache is not None
        groups = self._current_groups()
        n = len(self.rows)
        weights = [self._weights(group, num) for group in groups]
        position_n = self._tensor([row.num_drawn for row in self.rows])
        cells_Sm = self._tensor(cells_nm)[self._owner_S]
        log_probability_n = torch.zeros(n, dtype=torch.float64, device=self._device)
        drawn: list[Tensor] = []
        replays = self._record is not None and self._cache.can_be_recorded and len(groups) == 1
        if replays and num > (FEWEST_STEPS if self._recorded is None else 1):
            position_n, log_probability_n = self._replay(
                groups[0], num - 1, weights[0], position_n, cells_Sm, drawn
            )
        for step in range(len(drawn), num):
            tokens_n = torch.empty(n, dtype=torch.int64, device=self._device)
            for group, weights_mnG in zip(groups, weights, strict=True):
                own_n, log_n = self._draw_group(
                    group, self._hidden_SE, weights_mnG[step], position_n
                )
                if len(groups) == 1:
                    tokens_n, log_probability_n = own_n, log_probability_n + log_n
                else:
                    tokens_n[group.index_n] = own_n
                    log_probability_n[group.index_n] += log_n
            drawn.append(tokens_n)
            if step + 1 < num:
                position_n = position_n + 1
                fed_S1 = self._legal(tokens_n, groups)[self._owner_S, None]
                self._hidden_SE = self.decoder.hidden_states(
                    fed_S1, cells_BT=cells_Sm[:, step, None], cache=self._cache
                )[:, 0]
                self._cache.advance([1] * len(self._owner_S))
        for row, value in zip(self.rows, log_probability_n.tolist(), strict=True):
            row.log_probability += value
        return torch.stack(drawn, dim=1).cpu().numpy().astype(np.int32)

    def _replay(
        self,
        group: Group,
        num: int,
        weights_mnG: Tensor,
        position_n: Tensor,
        cells_Sm: Tensor,
        drawn: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """`num` steps by a recorded one; what they draw is appended to `drawn`. The positions after
        them, log-probabilities."""
        assert self._record is not None
        assert self._cache is not None
        cache = self._cache

        def draw(
            hidden_SE: Tensor, weights_nG: Tensor, position_n: Tensor
        ) -> tuple[Tensor, Tensor]:
            return self._draw_group(group, hidden_SE, weights_nG, position_n)

        def read(tokens_n: Tensor, cells_S1: Tensor) -> Tensor:
            fed_S1 = self._legal(tokens_n, [group])[self._owner_S, None]
            return self.decoder.hidden_states(fed_S1, cells_BT=cells_S1, cache=cache)[:, 0]

        if self._recorded is None or self._recorded[0] is not group:
            recorded = RecordedStep(
                draw,
                read,
                cache,
                self._hidden_SE,
                weights_mnG[0],
                position_n,
                cells_Sm[:, :1],
                self._record,
            )
            self._recorded = group, recorded
        recorded = self._recorded[1]
        hidden_SE: Tensor | None = self._hidden_SE
        log_probability_n = torch.zeros(len(self.rows), dtype=torch.float64, device=self._device)
        for step in range(num):
            tokens_n, log_n = recorded(
                hidden_SE, weights_mnG[step], position_n, cells_Sm[:, step, None]
            )
            drawn.append(tokens_n)
            hidden_SE, position_n, log_probability_n = (
                None,
                position_n + 1,
                log_probability_n + log_n,
            )
        self._hidden_SE = recorded.hidden_SE.clone()
        return position_n, log_probability_n

    def _legal(self, tokens_n: Tensor, groups: list[Group]) -> Tensor:
        """What is fed of what was drawn. An id outside its slice is told when the grammar takes it,
        and must not break a step."""
        if len(groups) == 1:
            return tokens_n.clamp(groups[0].ids.start, groups[0].ids.stop - 1)
        fed_n = tokens_n.clone()
        for group in groups:
            fed_n[group.index_n] = tokens_n[group.index_n].clamp(
                group.ids.start, group.ids.stop - 1
            )
        return fed_n

    def _weights(self, group: Group, num: int) -> Tensor:
        """Weights of the group's streams, float32 [m, n, G]."""
        G = group.stream_rows_nG.shape[1]
        weights_nmG = np.zeros((len(group.places), num, G), np.float32)
        for index, place in enumerate(group.places):
            own = self.rows[place].weights(num)
            weights_nmG[index, :, : own.shape[1]] = own
        return torch.from_numpy(weights_nmG.swapaxes(0, 1).copy()).to(self._device)

    def _draw_group(
        self, group: Group, hidden_SE: Tensor, weights_nG: Tensor, position_n: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A group's next tokens, int64 [n], and their log-probability under the reference stream,
        float64 [n]."""
        hidden_gE = hidden_SE if group.rows_g is None else hidden_SE[group.rows_g]
        logits_gR = self.decoder.logits(hidden_gE, group.ids).float()
        position_n = (
            position_n if len(position_n) == len(group.places) else position_n[group.index_n]
        )
        try:
            tokens_n = self._call(group, logits_gR, slice(None), weights_nG, position_n)
        except Exception as error:
            tokens_n = self._one_by_one(group, logits_gR, weights_nG, position_n, error)
        return tokens_n, _log_probability(
            logits_gR[group.reference_n], group.allowed_nR, tokens_n - group.ids.start
        )

    def _call(
        self, group: Group, logits_gR: Tensor, part: slice, weights_nG: Tensor, position_n: Tensor
    ) -> Tensor:
        """The sampler's draw for a part of the group."""
        tokens_n = group.sampler.draw(
            logits_gR,
            group.stream_rows_nG[part],
            weights_nG[part],
            group.plans if part == slice(None) else group.plans[part],
            first_id=group.ids.start,
            allowed_nR=None if group.allowed_nR is None else group.allowed_nR[part],
            seed_n=group.seed_n[part],
            position_n=position_n[part],
        )
        expected = len(group.plans[part])
        if (
            not isinstance(tokens_n, Tensor)
            or tokens_n.shape != (expected,)
            or tokens_n.dtype != torch.int64
        ):
            shown = (
                f"{tokens_n.dtype} {list(tokens_n.shape)}"
                if isinstance(tokens_n, Tensor)
                else type(tokens_n).__name__
            )
            raise GenerationError(
                "sampler", f"drew {shown}, not int64 [{expected}]", "correct the sampler's `draw`"
            )
        return tokens_n

    def _one_by_one(
        self,
        group: Group,
        logits_gR: Tensor,
        weights_nG: Tensor,
        position_n: Tensor,
        error: Exception,
    ) -> Tensor:
        """Something went wrong in a draw for several requests: find out for which, and let the
        others go on."""
        tokens: list[Tensor] = []
        for index, place in enumerate(group.places):
            row, part = self.rows[place], slice(index, index + 1)
            own: Tensor = torch.tensor([group.ids.start], device=self._device)
            if row.error is None:
                try:
                    if len(group.places) == 1:
                        raise error
                    own = self._call(group, logits_gR, part, weights_nG, position_n)
                except Exception as own_error:
                    row.error = wrong_request(row.number, own_error)
            tokens.append(own)
        return torch.cat(tokens)

    # ---- groups

    def _current_groups(self) -> list[Group]:
        """The requests by what draws for them; kept as long as nothing about it changes."""
        legal = [row.grammar.legal for row in self.rows]
        now = tuple((row.grammar.modality, ids) for row, ids in zip(self.rows, legal, strict=True))
        if self._groups is None or self._groups[0] != now:
            together: list[list[int]] = []
            for place, row in enumerate(self.rows):
                for others in together:
                    first = self.rows[others[0]]
                    if first.grammar.modality == row.grammar.modality and first.sampler.draws_with(
                        row.sampler
                    ):
                        others.append(place)
                        break
                else:
                    together.append([place])
            self._groups = (
                now,
                [self._group(places, [legal[place] for place in places]) for places in together],
            )
        return self._groups[1]

    def _group(self, places: list[int], legal: list[LegalIds]) -> Group:
        rows = [self.rows[place] for place in places]
        plans = tuple(row.plan() for row in rows)
        wanted: dict[int, int] = {}
        stream_rows_nG = np.full((len(rows), max(len(plan.streams) for plan in plans)), -1)
        for index, (place, row, plan) in enumerate(zip(places, rows, plans, strict=True)):
            for stream, guidance in enumerate(plan.streams):
                if guidance.weight != 0 or stream == plan.reference:
                    stream_row = self._starts[place] + row.local[stream]
                    stream_rows_nG[index, stream] = wanted.setdefault(stream_row, len(wanted))
        ids = range(min(own[0].start for own in legal), max(own[-1].stop for own in legal))
        allowed: BoolArray = np.zeros((len(legal), len(ids)), np.bool_)
        for index, ranges in enumerate(legal):
            for own in ranges:
                allowed[index, own.start - ids.start : own.stop - ids.start] = True
        everything = list(wanted) == list(range(self._starts[-1]))
        return Group(
            places,
            ids,
            rows[0].sampler,
            plans,
            None if everything else self._tensor(list(wanted)),
            self._tensor(stream_rows_nG),
            self._tensor(
                [stream_rows_nG[index, plan.reference] for index, plan in enumerate(plans)]
            ),
            None if allowed.all() else torch.from_numpy(allowed).to(self._device),
            self._tensor([row.request.seed for row in rows]),
            self._tensor(places),
        )

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(self._device)


def wrong_request(number: int, error: Exception) -> GenerationError:
    """The error of one request among others, with what caused it."""
    if isinstance(error, CM3Error):
        wrapped = GenerationError(f"request {number}, {error.place}", error.cause, error.next_step)
    else:
        wrapped = GenerationError(
            f"request {number}",
            f"{type(error).__name__}: {error}",
            "see the traceback of its cause",
        )
    wrapped.__cause__ = error
    return wrapped


def _log_probability(logits_nR: Tensor, allowed_nR: Tensor | None, index_n: Tensor) -> Tensor:
    """Log-probability, float64 [n], of one id of each row among its allowed ids."""
    if allowed_nR is not None:
        logits_nR = logits_nR.masked_fill(~allowed_nR, float("-inf"))
    # an id outside is reported when the grammar takes it
    inside_n = index_n.clamp(0, logits_nR.shape[1] - 1)
    return (logits_nR.gather(1, inside_n[:, None])[:, 0] - logits_nR.logsumexp(dim=1)).double()
