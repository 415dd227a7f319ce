"""The generation loop: `Engine.complete` fills the holes of documents, many kinds of them in one batch.

One prefill of all prompts (right-padded; a padded token is written to the cache but not counted), equal prompts read once and
forked; then one forward a step for all guidance streams of all requests. The token drawn for a request goes to all of its
streams. The head runs over the ids that the grammar allows: at image positions the image codes only.

Legend: n requests in the batch, G guidance streams, S stream rows (at most n * G), T tokens fed at once, E model
dimension, R ids of the legal slice, m draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from cm3core.document import NO_CELL, BoolArray, Document, IntArray, has_holes
from cm3core.errors import GenerationError
from cm3core.grammar import HoleGrammar, LegalIds, num_draws, num_new_tokens
from cm3core.interfaces.decoder import Decoder, KVCache
from cm3core.interfaces.sampler import Sampler, SamplingPlan
from cm3core.vocab import Vocabulary

if TYPE_CHECKING:
    from cm3core.serialize import Hole, Prompt, Serializer

#: Called as the work goes on with (tokens drawn so far, most there can be). An exception raised in it ends the work.
Progress: TypeAlias = Callable[[int, int], None]

MAX_SEED = 2**63 - 1
#: Decoders with fewer parameters decode on one thread of the CPU: a step is some hundred operations of microseconds, and threads
#: that meet after each of them gain little on a quiet machine and lose everything (30 times, measured) on a busy one.
SMALL_DECODER = 30_000_000
_MODALITIES = ("text", "image")


@dataclass(frozen=True, eq=False)
class Request:
    """One document to complete.

    Args:
        document: segments with at least one hole; pictures as `Codes`.
        retrieved: documents to put in front, in this order.
        seed: 0..2**63-1. Equal requests give equal completions, whatever else is in the batch.
    """

    document: Document
    retrieved: Sequence[Document] = ()
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Completion:
    """A filled document.

    Args:
        document: the request's document, each hole replaced by `Text` or `Codes`.
        log_probability: nats; sum over the drawn tokens of their log-probability under the conditional stream alone, among the
            legal ids, at temperature 1 (tokens without a choice count nothing).
        num_tokens: tokens drawn, drawn end tokens included.
    """

    document: Document
    log_probability: float
    num_tokens: int


def candidate_seed(seed: int, index: int) -> int:
    """Seed of candidate `index` of a request: the first k candidates are the same however many are asked for.

    Candidate 0 has the request's own seed, so that a picture's seed alone draws it again.

    >>> candidate_seed(7, 0), candidate_seed(7, 1) == candidate_seed(7, 1), candidate_seed(7, 1) == candidate_seed(8, 1)
    (7, True, False)
    """
    if not 0 <= seed <= MAX_SEED:
        raise GenerationError("seed", f"is {seed}", "use 0 to 2**63 - 1")
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)


class Engine:
    """Completes documents with one decoder and one sampler.

    Args:
        decoder: on any device; its own dtype is used.
        serializer: documents -> prompts, with the text tokenizer that turns drawn ids into text.
        sampler: which guidance streams, how they are mixed and filtered.
        vocabulary: the decoder's.
        max_text_tokens: every text of a prompt is cut to its first so many tokens, as it was in training. None: never.
        max_rows: most stream rows in one batch; it bounds memory, more requests are done batch after batch.
        num_threads: of torch on the CPU while it works. None: one for a small decoder, else as they are.
    """

    def __init__(self, decoder: Decoder, serializer: Serializer, sampler: Sampler, vocabulary: Vocabulary, *,
                 max_text_tokens: int | None = None, max_rows: int = 64, num_threads: int | None = None) -> None:
        self.decoder, self.serializer, self.sampler, self.vocabulary = decoder, serializer, sampler, vocabulary
        self.max_text_tokens, self.max_rows = max_text_tokens, max_rows
        small = sum(parameter.numel() for parameter in decoder.parameters()) < SMALL_DECODER
        self.num_threads = 1 if num_threads is None and small else num_threads
        self._plans = {modality: sampler.plan(modality) for modality in _MODALITIES}
        variants = [[stream.variant for stream in plan.streams] for plan in self._plans.values()]
        assert variants[0] == variants[1], "a sampler's plans must name the same streams in the same order"

    @property
    def batch_size(self) -> int:
        """So many requests are sure to be done in one batch."""
        return max(1, self.max_rows // len(self._plans["image"].streams))

    def fits(self, request: Request) -> bool:
        """Whether the context holds the request's prompts and all that is to be generated."""
        prompts, stream_of = self._prompts(request)
        return all(self._excess(prompts[stream]) <= 0 for stream in set(stream_of))

    @torch.inference_mode()
    def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Completion]:
        """Fill the holes of all requests; results in the order of the requests.

        Raises:
            GenerationError: a request has no hole, a bad seed, or doesn't fit the context. Nothing has been generated then.
            DocumentError: a document can't be serialised.
        """
        prepared = [self._prepare(place, request) for place, request in enumerate(requests)]
        total = sum(num_draws(row.grammar.holes) for row in prepared)
        with _threads(self.num_threads):
            for chunk in _chunks(prepared, self.max_rows):
                batch = _Batch(self.decoder, self.sampler, self._plans, chunk)
                while batch.rows:
                    batch.step(self.serializer.grid[1])
                    if progress is not None:
                        progress(sum(row.num_drawn for row in prepared), total)
        return [Completion(self.serializer.fill(request.document, row.grammar.contents), row.log_probability, row.num_drawn)
                for request, row in zip(requests, prepared, strict=True)]

    def _prepare(self, place: int, request: Request) -> _Row:
        """Prompts of the streams that the request needs, checked against the context."""
        where = f"request {place}"
        candidate_seed(request.seed, 0)
        if not has_holes(request.document):
            raise GenerationError(where, "the document has no hole, there is nothing to complete",
                                  "put a TextHole, an ImageHole or missing codes where something is to be generated")
        prompts, stream_of = self._prompts(request)
        for stream in sorted(set(stream_of)):
            self._check_room(where, prompts[stream])
        grammar = HoleGrammar(prompts[0].holes, self.vocabulary, self.serializer.text_tokenizer.vocab_size)
        return _Row([prompts[stream] for stream in stream_of], grammar, request.seed)

    def _prompts(self, request: Request) -> tuple[list[Prompt], list[int]]:
        """A prompt for each stream of the sampler, and for each stream the one that it reads."""
        prompts = [self.serializer.prompt(request.document, request.retrieved, stream.variant,
                                          max_text_tokens=self.max_text_tokens) for stream in self._plans["image"].streams]
        holes = prompts[0].holes
        assert all(_same_holes(holes, prompt.holes) for prompt in prompts), "streams may differ in the prompt only"
        modalities = {"text" if hole.kind == "text" else "image" for hole in holes}
        return prompts, [self._needed_stream(stream, modalities) for stream in range(len(prompts))]

    def _needed_stream(self, stream: int, modalities: set[str]) -> int:
        """The stream itself, or the conditional one in place of a stream that has no weight in any of the modalities."""
        plans = [self._plans[modality] for modality in modalities]
        if any(plan.streams[stream].weight != 0 or plan.reference == stream for plan in plans):
            return stream
        return plans[0].reference

    def _excess(self, prompt: Prompt) -> int:
        """Tokens of the prompt and of what is to be generated beyond the decoder's context."""
        return len(prompt.tokens) + num_new_tokens(prompt.holes) - self.decoder.context_length

    def _check_room(self, where: str, prompt: Prompt) -> None:
        over = self._excess(prompt)
        if over <= 0:
            return
        num_prompt, num_new, context = len(prompt.tokens), num_new_tokens(prompt.holes), self.decoder.context_length
        text = sum(hole.max_tokens for hole in prompt.holes if hole.kind == "text")
        shorter = f", or write at most {text - over} text tokens instead of {text}" if text - over > 0 else ""
        raise GenerationError(where, f"the prompt is {num_prompt} tokens and {num_new + 1} are to be generated, "
                              f"{over} more than the decoder's context of {context} holds",
                              f"shorten the text or retrieve fewer documents (a prompt of {max(context - num_new, 0)} tokens "
                              f"fits){shorter}")


@dataclass(eq=False)
class _Row:
    """A request in the making: the prompt of each stream (equal objects share a cache row) and its state."""

    prompts: list[Prompt]
    grammar: HoleGrammar
    seed: int
    num_drawn: int = 0
    log_probability: float = 0.0


class _Batch:
    """The requests that are generated together, and their tensors. Finished requests leave."""

    def __init__(self, decoder: Decoder, sampler: Sampler, plans: dict[str, SamplingPlan], rows: list[_Row]) -> None:
        self.rows, self._decoder, self._sampler, self._plans = list(rows), decoder, sampler, plans
        self._device = decoder.head_weight().device
        self._slices: dict[tuple[LegalIds, ...], tuple[range, Tensor | None]] = {}
        self._plan_tuples: dict[tuple[str, ...], tuple[tuple[SamplingPlan, ...], Tensor]] = {}
        self._place_rows([_streams(row)[1] for row in rows])
        self._prefill([prompt for row in rows for prompt in _streams(row)[0]])

    def _place_rows(self, local_rows: list[list[int]]) -> None:
        """Number the stream rows: request by request, each with as many as it has different prompts."""
        self._local_rows, self._num_streams = local_rows, [max(local) + 1 for local in local_rows]
        starts = np.cumsum([0, *self._num_streams])
        self._owner_S = self._tensor(np.repeat(np.arange(len(local_rows)), self._num_streams))
        self._stream_rows_nG = self._tensor(np.array([[start + row for row in local]
                                                      for start, local in zip(starts[:-1], self._local_rows, strict=True)]))
        self._one_S = torch.ones(int(starts[-1]), dtype=torch.int64, device=self._device)
        self._seed_n = self._tensor(np.array([row.seed for row in self.rows]))
        self._plan_tuples.clear()

    def _prefill(self, prompts_S: list[Prompt]) -> None:
        """Read each different prompt once, then fork its cache to all stream rows that start with it."""
        index: dict[bytes, int] = {}
        source_S = np.array([index.setdefault(_key(prompt), len(index)) for prompt in prompts_S])
        unique = [prompts_S[int(np.flatnonzero(source_S == row)[0])] for row in range(len(index))]
        room = max(len(prompt.tokens) + num_new_tokens(row.grammar.holes) for row in self.rows for prompt in row.prompts)
        self._cache: KVCache = self._decoder.allocate_cache(len(unique), room)
        hidden_UE = self._feed([prompt.tokens for prompt in unique], [prompt.cells for prompt in unique])
        if len(unique) < len(prompts_S) or not np.array_equal(source_S, np.arange(len(prompts_S))):
            rows_S = self._tensor(source_S)
            self._cache, hidden_UE = self._cache.select(rows_S), hidden_UE[rows_S]
        self._hidden_SE = hidden_UE

    def step(self, max_draws: int) -> None:
        """Draw until a row's grammar needs a look (at most `max_draws` times), then feed what follows."""
        num = min(max_draws, *(row.grammar.num_draws for row in self.rows))
        cells_nm = np.stack([row.grammar.cells(num) for row in self.rows])
        tokens_nm = self._draw(num, cells_nm)
        queues, queue_cells = [], []
        for row, tokens, cells in zip(self.rows, tokens_nm, cells_nm, strict=True):
            forced = row.grammar.take(tokens)
            row.num_drawn += num
            queues.append(np.concatenate([tokens[-1:], forced]))
            queue_cells.append(np.concatenate([cells[-1:], np.full(len(forced), NO_CELL, np.int32)]))
        left = [place for place, row in enumerate(self.rows) if not row.grammar.done]
        if len(left) < len(self.rows):
            self._keep(left)
        if left:
            owners = [place for place, num in zip(left, self._num_streams, strict=True) for _ in range(num)]
            self._hidden_SE = self._feed([queues[place] for place in owners], [queue_cells[place] for place in owners])

    def _draw(self, num: int, cells_nm: IntArray) -> IntArray:
        """The next `num` tokens of every row, int32 [n, num]; all but the last have been fed."""
        ids, allowed_nR = self._slice()
        plans, reference_rows_n = self._current_plans()
        weights_nG = torch.tensor([[stream.weight for stream in plan.streams] for plan in plans], device=self._device)
        position_n = self._tensor(np.array([row.num_drawn for row in self.rows]))
        cells_Sm = self._tensor(cells_nm)[self._owner_S]
        drawn, log_probability_n = [], torch.zeros(len(self.rows), dtype=torch.float64, device=self._device)
        for step in range(num):
            logits_SR = self._decoder.logits(self._hidden_SE, ids).float()
            tokens_n = self._sampler.draw(logits_SR, self._stream_rows_nG, weights_nG, plans, first_id=ids.start, allowed_nR=allowed_nR,
                                          seed_n=self._seed_n, position_n=position_n)
            log_probability_n += _log_probability(logits_SR[reference_rows_n], allowed_nR, tokens_n - ids.start)
            drawn.append(tokens_n)
            if step + 1 < num:
                position_n = position_n + 1
                self._hidden_SE = self._forward(tokens_n[self._owner_S, None], cells_Sm[:, step, None])
                self._cache.advance(self._one_S)
        for row, value in zip(self.rows, log_probability_n.tolist(), strict=True):
            row.log_probability += value
        return torch.stack(drawn, dim=1).cpu().numpy().astype(np.int32)

    def _forward(self, tokens_S1: Tensor, cells_S1: Tensor) -> Tensor:
        return self._decoder.hidden_states(tokens_S1, cells_BT=cells_S1, cache=self._cache)[:, 0]

    def _feed(self, tokens: list[IntArray], cells: list[IntArray]) -> Tensor:
        """Let each stream row read its own number of tokens; hidden states after the last of them, [S, E]."""
        count = np.array([len(row) for row in tokens])
        if count.max() == 1:
            hidden_SE = self._forward(self._tensor(np.stack(tokens)), self._tensor(np.stack(cells)))
            self._cache.advance(self._one_S)
            return hidden_SE
        tokens_ST = np.zeros((len(tokens), count.max()), np.int64)
        cells_ST = np.full(tokens_ST.shape, NO_CELL, np.int64)
        for row, (own, own_cells) in enumerate(zip(tokens, cells, strict=True)):
            tokens_ST[row, :len(own)], cells_ST[row, :len(own)] = own, own_cells
        count_S = self._tensor(count)
        hidden_STE = self._decoder.hidden_states(self._tensor(tokens_ST), cells_BT=self._tensor(cells_ST), cache=self._cache)
        self._cache.advance(count_S)
        return hidden_STE[torch.arange(len(tokens), device=self._device), count_S - 1]

    def _keep(self, left: list[int]) -> None:
        """Finished requests leave: their stream rows are dropped from the cache."""
        starts = np.cumsum([0, *self._num_streams])
        rows = [row for place in left for row in range(starts[place], starts[place + 1])]
        self.rows = [self.rows[place] for place in left]
        if left:
            self._cache = self._cache.select(self._tensor(np.array(rows)))
            self._place_rows([self._local_rows[place] for place in left])

    def _slice(self) -> tuple[range, Tensor | None]:
        """The smallest range that covers every row's legal ids, and who may draw what in it (None: everything)."""
        legal = tuple(row.grammar.legal for row in self.rows)
        if legal not in self._slices:
            cover = range(min(ids[0].start for ids in legal), max(ids[-1].stop for ids in legal))
            allowed: BoolArray = np.zeros((len(legal), len(cover)), np.bool_)
            for row, ranges in enumerate(legal):
                for ids in ranges:
                    allowed[row, ids.start - cover.start:ids.stop - cover.start] = True
            self._slices[legal] = cover, None if allowed.all() else torch.from_numpy(allowed).to(self._device)
        return self._slices[legal]

    def _current_plans(self) -> tuple[tuple[SamplingPlan, ...], Tensor]:
        """Each row's plan at its present position, and the stream row that is its conditional one, int64 [n]."""
        modalities = tuple(row.grammar.modality for row in self.rows)
        if modalities not in self._plan_tuples:
            plans = tuple(self._plans[modality] for modality in modalities)
            reference_n = self._tensor(np.array([plan.reference for plan in plans]))
            self._plan_tuples[modalities] = plans, self._stream_rows_nG.gather(1, reference_n[:, None])[:, 0]
        return self._plan_tuples[modalities]

    def _tensor(self, values: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | IntArray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(self._device)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many threads of torch on the CPU inside; None: as they are."""
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        torch.set_num_threads(before)


def _log_probability(logits_nR: Tensor, allowed_nR: Tensor | None, index_n: Tensor) -> Tensor:
    """Log-probability, float64 [n], of one id of each row among its allowed ids."""
    if allowed_nR is not None:
        logits_nR = logits_nR.masked_fill(~allowed_nR, float("-inf"))
    inside_n = index_n.clamp(0, logits_nR.shape[1] - 1)  # an id outside is reported when the grammar takes it
    return (logits_nR.gather(1, inside_n[:, None])[:, 0] - logits_nR.logsumexp(dim=1)).double()


def _streams(row: _Row) -> tuple[list[Prompt], list[int]]:
    """The different prompts of a request, and for each guidance stream which of them it reads."""
    index: dict[bytes, int] = {}
    local = [index.setdefault(_key(prompt), len(index)) for prompt in row.prompts]
    return [row.prompts[local.index(place)] for place in range(len(index))], local


def _key(prompt: Prompt) -> bytes:
    """Equal for prompts that the decoder can't tell apart."""
    return prompt.tokens.tobytes() + prompt.cells.tobytes()


def _same_holes(left: tuple[Hole, ...], right: tuple[Hole, ...]) -> bool:
    def form(hole: Hole) -> tuple[object, ...]:
        return (hole.segment, hole.kind, hole.prefix.tolist(), None if hole.cells is None else hole.cells.tolist(),
                hole.max_tokens, hole.ends_with)

    return [form(hole) for hole in left] == [form(hole) for hole in right]


def _chunks(rows: list[_Row], max_rows: int) -> list[list[_Row]]:
    """Batches of at most `max_rows` stream rows (at least one request each), in order."""
    chunks: list[list[_Row]] = []
    used = 0
    for row in rows:
        num = len(_streams(row)[0])
        if not chunks or used + num > max_rows:
            chunks.append([])
            used = 0
        chunks[-1].append(row)
        used += num
    return chunks
