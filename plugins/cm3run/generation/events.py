"""Requests to the engine, their completions, and the events reported meanwhile. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import BoolArray, Codes, Document, IntArray
from cm3core.errors import GenerationError
from cm3core.faults import SEE_TRACEBACK, parts_of, told

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import Sampler

#: Called after each step with (tokens generated so far, maximum total). An exception raised in it
#: ends the work.
Progress: TypeAlias = Callable[[int, int], None]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Request:
    """One document to complete.

    Args:
        document: segments with at least one hole; pictures as `Codes`.
        retrieved: documents to prepend, in this order.
        seed: 0..2**63-1. Equal requests give equal completions, regardless of the rest of the
            batch.
        sampler: None: the engine's.
        truncate: read only the first tokens of a text of the document, or of a negative prompt,
            that is longer than the engine's `max_text_tokens`, as training did, instead of refusing
            it. Texts of retrieved documents are always cut, and texts with holes never.
        control: names of the objective's control tokens that the prompt begins with. None: those
            that the objective names.
        keep: keep what its rows have read when it is finished, for requests with `keep` whose prompts
            begin in the same way: parts of a reply, turns of a conversation. Their keys and values
            are then not computed again; all else stays the same, up to rounding.
    """

    document: Document
    retrieved: Sequence[Document] = ()
    seed: int = 0
    sampler: Sampler | None = None
    truncate: bool = False
    control: Sequence[str] | None = None
    keep: bool = False


@dataclass(eq=False)
class Trace:
    """What a recording session knows of the tokens sampled for a request, in the order sampled.

    Args:
        document: the request's document with every size decided.
        contents: int32; each hole's tokens, end tokens not included.
        tokens: int32 ids of the vocabulary, a part for each step.
        raw: float64, as `tokens`; the log-probabilities under the reference stream alone, among the
            legal ids, at temperature 1, in nats.
        policy: float, as `tokens`; those with which the sampler drew the tokens.
        support: for each token, the ids that the filters kept of its legal slice: `packbits` of bools.
    """

    document: Document = ()
    contents: tuple[IntArray, ...] = ()
    tokens: list[IntArray] = field(default_factory=list)
    raw: list[npt.NDArray[np.float64]] = field(default_factory=list)
    policy: list[npt.NDArray[np.floating]] = field(default_factory=list)
    support: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def add(
        self,
        tokens_m: IntArray,
        raw_m: npt.NDArray[np.float64],
        policy_m: npt.NDArray[np.floating],
        kept_mR: BoolArray,
    ) -> None:
        """Add m draws of one slice of R legal ids."""
        self.tokens.append(tokens_m)
        self.raw.append(raw_m)
        self.policy.append(policy_m)
        self.support += list(np.packbits(kept_mR, axis=1))


@dataclass(frozen=True, eq=False)
class Completion:
    """A filled document.

    Args:
        document: the request's document, each hole replaced by `Text` or `Codes`.
        log_probability: nats; sum over the sampled tokens of their log-probability under the
            conditional stream alone, among the legal ids, at temperature 1 (tokens without a choice
            count zero).
        num_tokens: number of tokens sampled, sampled end tokens included.
        trace: what a recording session knows of each token. None: nothing was recorded.
        ends: what ended each hole, in order: "end" (its end token), "picture" (what begins one, see
            `TextHole.or_picture`), "stop" (a string), "length"; "full" for pictures.
    """

    document: Document
    log_probability: float
    num_tokens: int
    trace: Trace | None = None
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happened to a request.

    `request` is the number that `Session.submit` returned, or the position in `Engine.stream`.
    """

    request: int


@dataclass(frozen=True, eq=False)
class TokensDrawn(Event):
    """Tokens of a hole, in the order sampled: int32 ids of the vocabulary.

    `segment` is the hole's position in the document.
    """

    segment: int
    tokens: IntArray


@dataclass(frozen=True, eq=False)
class TextGrown(Event):
    """A piece of a text hole: the text that became certain since the last piece.

    All pieces of a hole together are its text.
    """

    segment: int
    text: str


@dataclass(frozen=True, eq=False)
class PictureGrown(Event):
    """A partial picture: `codes` in which those not generated yet are `missing`.

    Sent whenever a row of codes is complete.
    """

    segment: int
    codes: Codes


@dataclass(frozen=True, eq=False)
class Finished(Event):
    """The request's holes are filled."""

    completion: Completion


@dataclass(frozen=True, eq=False)
class Failed(Event):
    """The request failed; others continue. `error` has the original error as its `__cause__`."""

    error: GenerationError


@dataclass(frozen=True, eq=False)
class Cancelled(Event):
    """The request was cancelled; its rows are free."""


#: Seeds from here on are of candidates but the first; users choose smaller ones.
_DERIVED = 2**62
#: Turns that a seed can carry: a multiple of any count up to 8, which then takes turns evenly.
_TURNS = 840


def candidate_seed(seed: int, index: int, turn: int = 0) -> int:
    """Seed of candidate `index` of a request.

    The first k candidates are the same for any number of candidates. Candidate 0 has the request's
    own seed, so that a picture's seed alone reproduces it. All others are at least 2**62.

    Args:
        seed: of the request, 0 to 2**63 - 1.
        index: 0 or more.
        turn: what `turn_of` finds in the seed, modulo 840: whose turn it was among the documents that may be in
            front, for one. Candidate 0 carries none.

    >>> candidate_seed(7, 0), candidate_seed(7, 1) == candidate_seed(7, 1), candidate_seed(7, 1) == candidate_seed(8, 1)
    (7, True, False)
    """
    if not 0 <= seed <= MAX_SEED:
        raise GenerationError("seed", f"is {seed}", "use 0 to 2**63 - 1")
    if index == 0:
        return seed
    drawn = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
    return _DERIVED + drawn % (_DERIVED // _TURNS) * _TURNS + turn % _TURNS


def turn_of(seed: int) -> int:
    """The turn that a seed of `candidate_seed` carries, 0 to 839; 0 of a seed that a user chose.

    >>> turn_of(7), turn_of(candidate_seed(7, 5)), turn_of(candidate_seed(7, 5, turn=3))
    (0, 0, 3)
    """
    return 0 if seed < _DERIVED else (seed - _DERIVED) % _TURNS


def wrong_request(number: int, error: BaseException) -> GenerationError:
    """The error of one request among others, with its cause."""
    known = parts_of(error)
    if known is not None:
        place, cause, next_step = known
        wrapped = GenerationError(f"request {number}, {place}", cause, next_step)
    else:
        wrapped = GenerationError(f"request {number}", told(error), SEE_TRACEBACK)
    wrapped.__cause__ = error
    return wrapped
