"""The rows in flight: requests of any kind that join, sample their next tokens together, and leave.

Each step is one forward pass over all guidance streams of all requests. The token drawn for a request is fed to all
of its streams. The head runs only over the ids that the grammar allows, separately for text and images: at image
positions, over the image codes. A request's tokens depend only on its own values, not on its neighbours in the batch.

On CUDA a step is captured once and replayed (a CUDA graph): at small batches, launching kernels takes longer than
running them. Every step reads and writes the same tensors: hidden states, positions, weights, cells, lengths. The
step is captured again whenever requests join or leave. The host reads what was drawn at the end of a row of a picture.
In text, which may end at any token, it reads every `TEXT_AHEAD` tokens, and drops those after an end.

Legend: n requests, G guidance streams, S stream rows (at most n * G), m draws, E model dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cm3core.document import NO_CELL, IntArray
from cm3run.faults import raise_interrupt
from cm3run.generation.events import wrong_request
from cm3run.generation.groups import Group, groups_of, index_tensor
from cm3run.generation.jacobi import Ahead, Guesses, can_look_ahead, read_ahead
from cm3run.generation.prompts import feed, read_prompts

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import InferenceDecoder, KVCache
    from cm3run.generation.prompts import KeptPrefixes
    from cm3run.generation.row import ActiveRequest


#: Captures a function's work; returns a function that repeats it on the tensors' current contents.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

#: Shortest run of steps for which capturing pays off; a capture costs about three steps.
FEWEST_STEPS = 8


#: Tokens of text drawn by replays before the host looks at them. A text ends half as many replays late on average.
TEXT_AHEAD = 16


class StepInputs(NamedTuple):
    """Inputs of a step: hidden states [S, E] (None: those left by the previous step), weights [n, G], positions
    [n], and the cells [S, 1] to draw."""

    hidden_SE: Tensor | None
    weights_nG: Tensor
    position_n: Tensor
    cells_S1: Tensor


class CapturedStep:
    """The step of a batch whose requests form one group.

    Args:
        draw: (hidden [S, E], weights [n, G], position [n]) -> (tokens [n], log-probability [n]).
        read: (tokens [n], cells [S, 1]) -> hidden [S, E] after the tokens, whose keys and values are written to the
            cache without advancing its lengths.
        cache: its lengths are advanced after each step.
        first: inputs of the first step; only their shapes matter.
        capture: `cuda_graph`.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        read: Callable[[Tensor, Tensor], Tensor],
        cache: KVCache,
        first: StepInputs,
        capture: Capture,
    ) -> None:
        self.cache = cache
        hidden_SE, *others = first
        assert hidden_SE is not None
        self.hidden_SE = hidden_SE.clone()
        self.weights_nG, self.position_n, self.cells_S1 = (one.clone() for one in others)
        position_n = self.position_n
        self.tokens_n, self.log_n = (
            torch.empty_like(position_n),
            torch.zeros(len(position_n), dtype=torch.float64, device=position_n.device),
        )

        def step() -> None:
            tokens_n, log_n = draw(self.hidden_SE, self.weights_nG, self.position_n)
            self.tokens_n.copy_(tokens_n)
            self.log_n.copy_(log_n)
            self.hidden_SE.copy_(read(tokens_n, self.cells_S1))
            cache.count_on_device()

        lengths_B = cache.length_B.clone()
        self._replay = capture(step)
        cache.length_B.copy_(lengths_B)  # capturing advanced them

    def __call__(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Run one step; return copies of the tokens and log-probabilities."""
        if inputs.hidden_SE is not None:
            self.hidden_SE.copy_(inputs.hidden_SE)
        self.weights_nG.copy_(inputs.weights_nG)
        self.position_n.copy_(inputs.position_n)
        self.cells_S1.copy_(inputs.cells_S1)
        self._replay()
        self.cache.count_on_host()
        return self.tokens_n.clone(), self.log_n.clone()


class CapturedWindow:
    """A pass over a window of codes, and the draws behind them, of a batch whose requests form one group. The host then
    decides how many of the draws are accepted.

    Args:
        draw: (hidden [S, w, E], position [n], weights [w, n, G]) -> (tokens [n, w], log-probability [n, w]).
        read: (tokens [S, w], cells [S, w]) -> hidden [S, w, E]; writes keys and values without advancing lengths.
        first: tokens, cells, positions and weights of the first pass; only their shapes matter.
        capture: `cuda_graph`.
    """

    def __init__(
        self,
        draw: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        read: Callable[[Tensor, Tensor], Tensor],
        first: Sequence[Tensor],
        capture: Capture,
    ) -> None:
        self._inputs = [one.clone() for one in first]
        tokens_Sw, cells_Sw, position_n, weights_wnG = self._inputs
        self._outputs: list[Tensor] = []

        def window() -> None:
            hidden_SwE = read(tokens_Sw, cells_Sw)
            made = [hidden_SwE, *draw(hidden_SwE, position_n, weights_wnG)]
            if not self._outputs:
                self._outputs = [torch.empty_like(one) for one in made]
            for mine, new in zip(self._outputs, made, strict=True):
                mine.copy_(new)

        self._replay = capture(window)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Run one pass; return copies of the hidden states, tokens and log-probabilities."""
        for mine, new in zip(self._inputs, inputs, strict=True):
            mine.copy_(new)
        self._replay()
        hidden_SwE, tokens_nw, log_nw = (one.clone() for one in self._outputs)
        return hidden_SwE, tokens_nw, log_nw


def cuda_graph(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Warm up on a separate stream, as capturing requires, then capture.

    Args:
        step: launches work on `device` only.
        device: the decoder's device. Streams and graphs belong to the current device; if that is another one,
            the captured graph would be empty.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads (a data loader, a server) may use the device at the same time
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay


def _read_window(
    decoder: InferenceDecoder, cache: KVCache, tokens_Sw: Tensor, cells_Sw: Tensor
) -> Tensor:
    return decoder.hidden_states_ahead(tokens_Sw, cells_BT=cells_Sw, cache=cache)


#: Maximum number of groupings that are kept while the same requests are in flight.
MOST_KNOWN = 256

#: A cache with one row per prompt, and the hidden states [S, E] after the prompts.
Read: TypeAlias = "tuple[KVCache, Tensor]"


class Batch:
    """The requests in flight, see the module docstring. Empty at first.

    Args:
        decoder: prepared for inference.
        capture: captures steps if the decoder's cache allows it. None: never capture.
        kept: cache of finished requests' keys and values, if any are kept.
        guesses: proposes codes when several are drawn at a time, see `cm3run.generation.jacobi`.
    """

    def __init__(
        self,
        decoder: InferenceDecoder,
        capture: Capture | None = None,
        kept: KeptPrefixes | None = None,
        guesses: Guesses | None = None,
    ) -> None:
        self.decoder, self._capture, self._kept = decoder, capture, kept
        self._guesses = guesses
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

    def read(self, rows: Sequence[ActiveRequest]) -> Read:
        """Prefill the prompts of `rows` (at least one) without changing the batch."""
        keeps = self._kept
        begun = [
            keeps.longest(prompt) if keeps is not None and row.request.keep else None
            for row in rows
            for prompt in row.prompts
        ]
        return read_prompts(self.decoder, [prompt for row in rows for prompt in row.prompts], begun)

    def join(self, rows: Sequence[ActiveRequest], read: Read) -> None:
        """Add `rows`, whose prompts were prefilled as `read`; they take part from the next step on."""
        cache, hidden_SE = read
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
        """Free the rows of these requests.

        The last request moves into the place of one that leaves, so that few keys are copied.
        """
        gone = {id(row) for row in leaving}
        if not any(id(row) in gone for row in self.rows):
            return
        for row in leaving:
            row.state = None
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

    def _keep(self, place: int, num_unread: int) -> None:
        """Keep the keys and values of a finished request's streams."""
        cache, kept, row = self._cache, self._kept, self.rows[place]
        assert cache is not None
        if kept is None or not cache.can_be_copied:
            return
        for stream, prompt in enumerate(row.prompts, start=self._starts[place]):
            tokens, cells = row.read_until(prompt, num_unread)
            if kept.room_for(len(tokens)):
                kept.put(tokens, cells, cache.copy(stream, len(tokens)))

    def _arrange(self) -> None:
        """Update all state that depends on the rows in flight."""
        counts = [len(row.prompts) for row in self.rows]
        self._starts = np.cumsum([0, *counts]).tolist()
        self._owners = np.repeat(np.arange(len(counts)), counts).tolist()
        self._owner_S = self._tensor(self._owners)
        self._groups: tuple[tuple[object, ...], list[Group]] | None = None
        #: Groups by what decides them. Rules of codes lead to the same legal ids again and again.
        self._known_groups: dict[tuple[object, ...], list[Group]] = {}
        self._captured: tuple[Group, CapturedStep] | None = None
        #: Window -> its captured pass, of one group.
        self._captured_windows: dict[int, tuple[Group, CapturedWindow]] = {}
        self._ahead: Ahead | None = None

    # ---- a step

    def step(self, max_draws: int) -> list[IntArray]:
        """Draw tokens, record them in the grammars, and feed the tokens that follow.

        Stops when some row's grammar must be consulted, after at most `max_draws` draws.

        Returns:
            the tokens drawn for each request, int32 [m], in the order `rows` had before the call.
            Finished requests and those whose `error` is set have left the batch.
        """
        ahead = self._looks_ahead()
        drawn = self._draw_ahead() if ahead else None
        logs_nm: npt.NDArray[np.float64] | None = None  # else they are counted already
        if drawn is None:
            placed = any(row.grammar.is_placed for row in self.rows)
            num = 1 if ahead or placed else min(max_draws, *(row.draws_now for row in self.rows))
            num = num if ahead else max(num, self._text_ahead())
            tokens_nm, logs_nm = self._draw(
                num, np.stack([row.grammar.cells(num) for row in self.rows])
            )
            drawn = list(tokens_nm)
            if self._guesses is not None and not ahead:
                self._guesses.passed_over(self.rows)
        queues: dict[int, tuple[IntArray, IntArray]] = {}
        for place, row in enumerate(self.rows):
            if row.error is not None:
                continue
            try:
                tokens, cells, forced = row.take(drawn[place])
            except BaseException as error:  # for example from a text tokenizer
                raise_interrupt(error)
                row.error = wrong_request(row.number, error)
                continue
            drawn[place] = tokens
            row.num_drawn += len(tokens)
            if logs_nm is not None:
                row.log_probability += float(logs_nm[place, : len(tokens)].cumsum()[-1])
            if row.state is not None:
                row.state.drawn.append(tokens)
            row.num_fed += len(tokens) + len(forced)
            forced_cells = row.grammar.forced_cells(forced)
            row.record_read(np.append(tokens, forced), np.append(cells, forced_cells))
            queues[id(row)] = (
                np.concatenate([tokens[-1:], forced]),
                np.concatenate([cells[-1:], forced_cells]),
            )
        for place, row in enumerate(self.rows):
            if row.error is None and row.grammar.done and row.request.keep:
                self._keep(place, num_unread=len(queues[id(row)][0]))
        self.drop([row for row in self.rows if row.error is not None or row.grammar.done])
        if self.rows:
            assert self._cache is not None
            self._feed([queues[id(row)] for row in self.rows])
        return drawn

    def _feed(self, queues: list[tuple[IntArray, IntArray]]) -> None:
        """Feed each request's tokens, and any guessed continuation, to its streams."""
        assert self._cache is not None
        owned = [own for row, own in zip(self.rows, queues, strict=True) for _ in row.prompts]
        self._ahead = None
        guesses = []
        if self._guesses is not None and self._looks_ahead():
            guesses = [self._guesses.of(row, self.num_rows) for row in self.rows]
        wide = max(map(len, guesses), default=0)
        if not wide:
            self._hidden_SE = feed(
                self.decoder,
                self._cache,
                [tokens for tokens, _ in owned],
                [cells for _, cells in owned],
            )
            return
        pairs = [
            (tokens, row.grammar.fed_cells(tokens))
            for row, tokens in zip(self.rows, guesses, strict=True)
            for _ in row.prompts
        ]
        replayed = self._replayed_window(owned, pairs)
        if replayed is None:
            self._hidden_SE, hidden_SwE = read_ahead(self.decoder, self._cache, owned, pairs)
            drawn = None
        else:
            hidden_SwE, drawn = replayed
            wide = hidden_SwE.shape[1] - 1
        guess_nk = np.full((len(guesses), wide), -1, np.int32)
        for own, tokens in zip(guess_nk, guesses, strict=True):
            own[: len(tokens)] = tokens
        self._ahead = Ahead(hidden_SwE, guess_nk, drawn)

    def _replayed_window(
        self, owned: list[tuple[IntArray, IntArray]], guessed: list[tuple[IntArray, IntArray]]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]] | None:
        """Feed one token and its guesses per stream by a captured pass: hidden states [S, w, E], and the draws behind
        them. None: such a pass can't be captured, or would not pay."""
        assert self._guesses is not None
        assert self._cache is not None
        cache = self._cache
        if self._capture is None or not cache.can_be_recorded:
            return None
        if any(len(tokens) != 1 for tokens, _ in owned):
            return None
        # the same window to the end of a picture, so that it is captured once
        window = max(self._guesses.window(row, self.num_rows) for row in self.rows)
        [group] = self._current_groups()
        known = self._captured_windows.get(window)
        if known is None or known[0] is not group:
            # about the root of a window is accepted per pass
            if min(row.draws_now for row in self.rows) <= FEWEST_STEPS * window**0.5:
                return None
            known = None
        tokens_Sw = np.zeros((len(owned), window), np.int64)
        cells_Sw = np.full((len(owned), window), NO_CELL, np.int64)
        for place, pair in enumerate(zip(owned, guessed, strict=True)):
            (own, own_cells), (tokens, cells) = pair
            tokens_Sw[place, : 1 + len(tokens)] = np.concatenate([own, tokens])
            cells_Sw[place, : 1 + len(tokens)] = np.concatenate([own_cells, cells])
        inputs = (
            self._tensor(tokens_Sw),
            self._tensor(cells_Sw),
            self._tensor([row.num_drawn for row in self.rows]),
            group.weights(window),
        )
        if known is None:
            read = partial(_read_window, self.decoder, cache)
            captured = CapturedWindow(
                partial(group.draw_ahead, self.decoder), read, inputs, self._capture
            )
            known = self._captured_windows[window] = group, captured
        hidden_SwE, *drawn = known[1](inputs)
        cache.advance([1] * len(owned))
        self._hidden_SE = hidden_SwE[:, 0]
        return hidden_SwE, (drawn[0], drawn[1])

    def _looks_ahead(self) -> bool:
        guesses, cache = self._guesses, self._cache
        return (
            guesses is not None
            and cache is not None
            and cache.counts_in_parts
            and can_look_ahead(self.rows, self._current_groups())
            and any(guesses.window(row, self.num_rows) > 1 for row in self.rows)
        )

    def _draw_ahead(self) -> list[IntArray] | None:
        """Return each row's next tokens as far as they are certain, int32; all but the last have been fed. None:
        nothing was read ahead, or the sampler failed."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        assert self._cache is not None
        assert self._guesses is not None
        [group] = self._current_groups()
        position_n = self._tensor([row.num_drawn for row in self.rows])
        try:
            if ahead.drawn is None:
                weights_wnG = group.weights(ahead.hidden_SwE.shape[1])
                tokens_nw, log_nw = group.draw_ahead(
                    self.decoder, ahead.hidden_SwE, position_n, weights_wnG
                )
            else:
                tokens_nw, log_nw = ahead.drawn
            drawn_nw, logs_nw = tokens_nw.cpu().numpy().astype(np.int32), log_nw.cpu().numpy()
        except BaseException as error:  # drawing one position at a time shows which request failed
            raise_interrupt(error)
            return None
        counts = ahead.accepted(drawn_nw, [row.draws_now for row in self.rows])
        self._cache.advance([counts[owner] - 1 for owner in self._owners])
        windows = (1 + (ahead.guess_nk >= 0).sum(axis=1)).tolist()
        for row, own, log, count, window in zip(
            self.rows, drawn_nw, logs_nw, counts, windows, strict=True
        ):
            row.log_probability += float(log[:count].sum())
            self._guesses.keep(row, own[:window], count)
        return [own[:count] for own, count in zip(drawn_nw, counts, strict=True)]

    def _text_ahead(self) -> int:
        """Tokens of text that replays draw before the host looks at them; 1 where none are replayed."""
        num = min(TEXT_AHEAD, *(row.text_ahead for row in self.rows))
        return num if num > 1 and self._replays(self._current_groups(), num) else 1

    def _replays(self, groups: list[Group], num: int) -> bool:
        """Whether the first of `num` draws are made by replaying a captured step."""
        known = self._captured is not None and self._captured[0] is groups[0]
        return (
            self._capture is not None
            and self._cache is not None
            and self._cache.can_be_recorded
            and len(groups) == 1
            and groups[0].states is None  # a sampler may look at its state on the host
            and groups[0].drawn is None
            and groups[0].penalty is None  # it changes from draw to draw
            and num > (1 if known else max(1, FEWEST_STEPS))
        )

    def _draw(self, num: int, cells_nm: IntArray) -> tuple[IntArray, npt.NDArray[np.float64]]:
        """Draw the next `num` tokens of every row: int32 [n, num], and their log-probabilities, float64 [n, num]. All but
        the last have been fed."""
        assert self._cache is not None
        groups = self._current_groups()
        n = len(self.rows)
        weights = [group.weights(num) for group in groups]
        position_n = self._tensor([row.num_drawn for row in self.rows])
        cell_nm = self._tensor(cells_nm)
        cells_Sm = cell_nm[self._owner_S]
        drawn: list[Tensor] = []
        logs: list[Tensor] = []
        if self._replays(groups, num):
            for tokens_n, log_n in self._replay(
                groups[0], num - 1, weights[0], position_n, cells_Sm
            ):
                drawn.append(tokens_n)
                logs.append(log_n)
            position_n = position_n + (num - 1)
        for step in range(len(drawn), num):
            tokens_n = torch.empty(n, dtype=torch.int64, device=self._device)
            all_n = torch.empty(n, dtype=torch.float64, device=self._device)
            for group, weights_mnG in zip(groups, weights, strict=True):
                own_n, log_n = group.draw(
                    self.decoder,
                    self._hidden_SE,
                    weights_mnG[step],
                    position_n,
                    cell_nm[:, step],
                    step,
                )
                if len(groups) == 1:
                    tokens_n, all_n = own_n, log_n
                else:
                    tokens_n[group.index_n] = own_n
                    all_n[group.index_n] = log_n
            drawn.append(tokens_n)
            logs.append(all_n)
            if step + 1 < num:
                position_n = position_n + 1
                fed_S1 = self._fed(tokens_n, groups)[self._owner_S, None]
                self._hidden_SE = self.decoder.hidden_states(
                    fed_S1, cells_BT=cells_Sm[:, step, None], cache=self._cache
                )[:, 0]
                self._cache.advance([1] * len(self._owner_S))
        logs_nm = torch.stack(logs, dim=1).cpu().numpy()
        tokens_nm = torch.stack(drawn, dim=1).cpu().numpy().astype(np.int32)
        for group in groups:
            if group.drawn is not None:
                group.take_drawn(tokens_nm[group.index_n.cpu().numpy()])
        return tokens_nm, logs_nm

    def _replay(
        self,
        group: Group,
        num: int,
        weights_mnG: Tensor,
        position_n: Tensor,
        cells_Sm: Tensor,
    ) -> list[tuple[Tensor, Tensor]]:
        """Replay a captured step `num` times: each step's tokens and their log-probabilities."""
        assert self._capture is not None
        assert self._cache is not None
        cache = self._cache

        def draw(
            hidden_SE: Tensor, weights_nG: Tensor, position_n: Tensor
        ) -> tuple[Tensor, Tensor]:
            return group.draw(self.decoder, hidden_SE, weights_nG, position_n)

        def read(tokens_n: Tensor, cells_S1: Tensor) -> Tensor:
            fed_S1 = self._fed(tokens_n, [group])[self._owner_S, None]
            return self.decoder.hidden_states(fed_S1, cells_BT=cells_S1, cache=cache)[:, 0]

        if self._captured is None or self._captured[0] is not group:
            first = StepInputs(self._hidden_SE, weights_mnG[0], position_n, cells_Sm[:, :1])
            self._captured = group, CapturedStep(draw, read, cache, first, self._capture)
        captured = self._captured[1]
        hidden_SE: Tensor | None = self._hidden_SE
        made = []
        for step in range(num):
            made.append(
                captured(
                    StepInputs(
                        hidden_SE, weights_mnG[step], position_n + step, cells_Sm[:, step, None]
                    )
                )
            )
            hidden_SE = None
        self._hidden_SE = captured.hidden_SE.clone()
        return made

    def _fed(self, tokens_n: Tensor, groups: list[Group]) -> Tensor:
        """Map drawn tokens to the tokens that are fed."""
        if len(groups) == 1:
            return groups[0].clamped(tokens_n)
        fed_n = tokens_n.clone()
        for group in groups:
            fed_n[group.index_n] = group.clamped(tokens_n[group.index_n])
        return fed_n

    def _current_groups(self) -> list[Group]:
        """The requests grouped by sampler call; cached until the grouping changes."""
        now = tuple(
            # a sampler state belongs to one picture, so each hole is its own group
            (grammar.modality, grammar.legal, None if row.state is None else len(grammar.contents))
            for row, grammar in ((row, row.grammar) for row in self.rows)
        )
        if self._groups is None or self._groups[0] != now:
            known = self._known_groups.get(now)
            if known is None:
                known = groups_of(self.rows, self._starts, self._device)
                if len(self._known_groups) < MOST_KNOWN and not any(one.remembers for one in known):
                    self._known_groups[now] = known
            self._groups = now, known
        return self._groups[1]

    def _tensor(self, values: Any) -> Tensor:
        return index_tensor(values, self._device)
