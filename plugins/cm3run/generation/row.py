"""One request in flight: its prompts, its grammar, its tokens so far, and its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cm3core.document import NO_CELL, Codes, Document, IntArray
from cm3core.sequence.grammar import HoleGrammar, after_lead, num_draws, num_new_tokens
from cm3run.generation.events import (
    Event,
    PictureGrown,
    Request,
    TextGrown,
    TokensDrawn,
    Trace,
)
from cm3run.generation.prompts import key
from cm3run.generation.sampling import stream_weights

if TYPE_CHECKING:
    from cm3core.errors import GenerationError
    from cm3core.interfaces.sampler import Sampler, SamplingPlan
    from cm3core.sequence.grammar import Hole
    from cm3core.sequence.prompt_writer import Prompt
    from cm3core.sequence.serialize import Serializer
    from cm3run.generation.sampling import RequestState

#: Codes of a sequence per `PictureGrown` event.
CODES_PER_EVENT = 16
#: Output of a tokenizer for bytes that don't (yet) form a character.
REPLACEMENT = "\ufffd"


@dataclass(frozen=True, eq=False)
class Told:
    """How much of a request has been reported as events.

    Args:
        num_drawn: tokens drawn by then.
        text: reported text of the open text hole.
        picture: the partial picture, and its segment.
    """

    num_drawn: int
    text: str
    picture: tuple[int, Codes] | None


@dataclass(eq=False)
class ActiveRequest:
    """A request and its state.

    Args:
        number: its number in events.
        request: as submitted.
        document: the request's document with every size decided.
        sampler: its own or the engine's.
        plans: the sampler's plan for each modality.
        prompts: the distinct prompts of its streams.
        local: for each guidance stream, the index of the prompt it reads (streams with zero weight
            read the reference's).
        grammar: its position in its holes.
        state: of a stateful sampler; None: the sampler is stateless, or the request has ended.
        trace: recorded data of each token drawn; None: not recording.
    """

    number: int
    request: Request
    document: Document
    sampler: Sampler
    plans: dict[str, SamplingPlan]
    prompts: list[Prompt]
    local: list[int]
    grammar: HoleGrammar
    state: RequestState | None = None
    trace: Trace | None = None
    num_drawn: int = 0
    num_fed: int = 0
    log_probability: float = 0.0
    error: GenerationError | None = None
    #: Tokens and cells read after the prompt, in order; only for a request whose rows are kept.
    read: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    #: Set while a request is drawn again from the start, until it has drawn as much as before.
    told: Told | None = None
    _num_told: int = 0
    _reported: str = ""
    _picture: tuple[int, Codes] | None = field(default=None)

    @property
    def most_draws(self) -> int:
        """Maximum number of tokens the request can draw."""
        return num_draws(self.grammar.holes)

    @property
    def new_tokens(self) -> int:
        """Maximum number of tokens in its rows after the prompt."""
        return num_new_tokens(self.grammar.holes)

    @property
    def longest(self) -> int:
        """Maximum number of tokens in its longest row."""
        return max(map(len, self.prompts)) + self.new_tokens

    @property
    def draws_now(self) -> int:
        """Number of tokens that may be drawn in the next step, at least 1."""
        number = self.grammar.num_draws
        return number if self.told is None else min(number, self.told.num_drawn - self.num_drawn)

    @property
    def text_ahead(self) -> int:
        """Number of tokens of the request's last text that can be drawn before its grammar takes the first of them: the
        same ids are legal for all, and what is drawn after the text's end is dropped with the request. 1 elsewhere."""
        grammar = self.grammar
        hole, place = grammar.hole, len(grammar.current)
        if (
            grammar.modality != "text"
            or hole.lead
            or len(grammar.contents) + 1 < len(grammar.holes)
        ):
            return 1
        number = hole.max_tokens - place
        if hole.ends_with is not None and place < hole.min_tokens:
            number = hole.min_tokens - place
        return number if self.told is None else min(number, self.told.num_drawn - self.num_drawn)

    def take(self, tokens: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Record drawn tokens in the grammar: those of a text up to its end.

        Returns:
            the tokens recorded, their cells, and the tokens that are forced after them.
        """
        grammar = self.grammar
        if grammar.modality != "text":
            forced = grammar.take(tokens)
            return tokens, grammar.drawn_cells, forced
        number, taken = len(grammar.contents), 0
        forced = tokens[:0]
        while taken < len(tokens) and len(grammar.contents) == number:
            forced = grammar.take(tokens[taken : taken + 1])
            taken += 1
        return tokens[:taken], np.full(taken, NO_CELL, np.int32), forced

    def plan(self) -> SamplingPlan:
        """The sampling plan at the current position."""
        return self.plans[self.grammar.modality]

    def weights(self, num: int) -> npt.NDArray[np.float32]:
        """Weights [num, G] of the streams at the next `num` positions of the current hole."""
        first, last = self.grammar.progress
        return stream_weights(self.plan(), first, last, num)

    def record_read(self, tokens: IntArray, cells: IntArray) -> None:
        """Record tokens fed after the prompt, if the rows are kept."""
        if self.request.keep:
            self.read.append((tokens, cells))

    def read_until(self, prompt: Prompt, num_unread: int) -> tuple[IntArray, IntArray]:
        """Tokens and cells held by a row with this prompt: all but the last `num_unread`."""
        tokens, cells = (np.concatenate(parts) for parts in zip(*self.read, strict=True))
        stop = len(tokens) - num_unread
        return (
            np.concatenate([prompt.tokens, tokens[:stop]]),
            np.concatenate([prompt.cells, cells[:stop]]),
        )

    def begin_again(self, fresh: ActiveRequest) -> None:
        """Restart as `fresh`, the same request prepared again: draw the same tokens without reporting any twice."""
        told = self.told or Told(self._num_told, self._reported, self._picture)
        vars(self).update(vars(fresh))
        self.told = told if told.num_drawn else None

    # ---- events

    def events(
        self, serializer: Serializer, hole: Hole, tokens: IntArray, *, closed: bool
    ) -> list[Event]:
        """Events for `tokens`, just drawn in `hole`; `closed`: the hole is now full."""
        if self.told is not None:
            if self.num_drawn == self.told.num_drawn:
                self._reported, self._picture = self.told.text, self.told.picture
                self._num_told, self.told = self.num_drawn, None
            return []
        self._num_told = self.num_drawn
        events: list[Event] = [TokensDrawn(self.number, hole.segment, tokens)]
        if hole.kind == "text":
            content = self.grammar.contents[-1] if closed else self.grammar.current
            text = serializer.text(np.asarray(content, np.int32))
            ready = text if closed else text[: _certain(text, hole.lead)]
            ready = after_lead(hole.lead, ready)
            if len(ready) > len(self._reported):
                events.append(TextGrown(self.number, hole.segment, ready[len(self._reported) :]))
                self._reported = ready
            if closed:
                self._reported = ""
        else:
            grown = self._drawn_into(serializer, hole, tokens, closed=closed)
            events += [PictureGrown(self.number, hole.segment, codes) for codes in grown]
        return events

    def _drawn_into(
        self, serializer: Serializer, hole: Hole, tokens: IntArray, *, closed: bool
    ) -> list[Codes]:
        """Put the codes into the partial picture; return it as it was after each row that is now full, and the hole."""
        assert hole.cells is not None
        if self._picture is None or self._picture[0] != hole.segment:
            segment = self.document[hole.segment]
            nothing = Codes(
                np.zeros(serializer.num_codes, np.int32),
                serializer.grid,
                np.ones(serializer.num_codes, np.bool_),
            )
            self._picture = hole.segment, segment if isinstance(segment, Codes) else nothing
        before = self._picture[1]
        assert before.missing is not None
        content = (
            self.grammar.contents[-1] if closed else np.asarray(self.grammar.current, np.int32)
        )
        cells = hole.cells[len(content) - len(tokens) : len(content)]
        codes, missing = before.codes.copy(), before.missing.copy()
        if hole.any_length and int(tokens[-1]) == hole.ends_with:  # nothing more is missing
            codes = serializer.form.padded(codes[~missing])
            return [Codes(codes, before.grid, np.zeros(len(codes), np.bool_))]
        drawn, form = serializer.vocabulary.to_codes(tokens), serializer.form
        per_row = CODES_PER_EVENT if form.end is not None else before.grid[1]
        grown = []
        for place, cell in enumerate(cells.tolist()):
            codes[cell], missing[cell] = drawn[place], False
            is_last = place + 1 == len(cells)
            if is_last and form.end is not None and codes[cell] == form.end:
                codes[cell:], missing[cell:] = form.end, False
            if cell % per_row == per_row - 1 or (closed and is_last):
                grown.append(Codes(codes.copy(), before.grid, missing.copy()))
        self._picture = hole.segment, Codes(codes, before.grid, missing)
        return grown


def _certain(text: str, lead: str) -> int:
    """Length of the part of a text that further bytes can't change: excludes unfinished characters and a possible
    beginning of the lead."""
    return 0 if lead.startswith(text) else len(text.rstrip(REPLACEMENT))


def different(prompts: list[Prompt]) -> tuple[list[Prompt], list[int]]:
    """The distinct prompts of a request's streams, and for each stream the index of its prompt."""
    index: dict[bytes, int] = {}
    local = [index.setdefault(key(prompt), len(index)) for prompt in prompts]
    return [prompts[local.index(place)] for place in range(len(index))], local
