"""Requests to the engine, their completions, and the events of a session. Uses numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from cm3core.document import BoolArray, Codes, Document, IntArray
from cm3core.errors import GenerationError
from cm3run.faults import SEE_TRACEBACK, parts_of, told

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import Sampler

#: Called after each step with (tokens generated so far, maximum total). An exception raised by it stops the work.
Progress: TypeAlias = Callable[[int, int], None]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Request:
    """One document to complete.

    Args:
        document: segments with at least one hole; pictures as `Codes`.
        retrieved: documents to prepend, in this order.
        seed: 0..2**63-1. Equal requests give equal completions, whatever else is in the batch.
        sampler: None: the engine's.
        truncate: cut texts of the document and negative prompts at the engine's `max_text_tokens`, as in training,
            instead of refusing longer ones. Texts of retrieved documents are always cut; texts with holes never are.
        control: names of the objective's control tokens at the start of the prompt. None: the objective's defaults.
        keep: keep the request's keys and values after it finishes, for later requests with `keep` whose prompts
            share its beginning (parts of a reply, turns of a conversation). They skip that part of the prefill;
            results are the same up to rounding.
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
    """The tokens sampled for a request and their log-probabilities, in sampling order; kept by recording sessions.

    Args:
        document: the request's document with every size decided.
        contents: int32; each hole's tokens, end tokens not included.
        tokens: int32 vocabulary ids, one part per step.
        raw: float64, shaped as `tokens`; log-probabilities under the reference stream alone, over the legal ids, at
            temperature 1, in nats.
        policy: float, shaped as `tokens`; log-probabilities under the distribution that was sampled from.
        support: for each token, the ids of its legal slice that passed the filters: `packbits` of bools.
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
        """Add m draws over a slice of R legal ids."""
        self.tokens.append(tokens_m)
        self.raw.append(raw_m)
        self.policy.append(policy_m)
        self.support += list(np.packbits(kept_mR, axis=1))


@dataclass(frozen=True, eq=False)
class Completion:
    """A filled document.

    Args:
        document: the request's document, each hole replaced by `Text` or `Codes`.
        log_probability: nats; sum of the sampled tokens' log-probabilities under the conditional stream alone, over
            the legal ids, at temperature 1 (forced tokens count zero).
        num_tokens: number of tokens sampled, including sampled end tokens.
        trace: recorded data of each token. None: the session did not record.
        ends: why each hole ended, in order: "end" (its end token), "picture" (a picture begins, see
            `TextHole.or_picture`), "stop" (a stop string), "length"; "full" for pictures.
    """

    document: Document
    log_probability: float
    num_tokens: int
    trace: Trace | None = None
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happened to a request.

    `request` is the number returned by `Session.submit`, or the position in `Engine.stream`.
    """

    request: int


@dataclass(frozen=True, eq=False)
class TokensDrawn(Event):
    """Tokens of a hole, in sampling order: int32 vocabulary ids.

    `segment` is the hole's position in the document.
    """

    segment: int
    tokens: IntArray


@dataclass(frozen=True, eq=False)
class TextGrown(Event):
    """A piece of a text hole: the text that became final since the previous piece.

    The pieces of a hole, joined, are its text.
    """

    segment: int
    text: str


@dataclass(frozen=True, eq=False)
class PictureGrown(Event):
    """A partial picture: `codes` with `missing` for those not generated yet.

    Sent each time a row of codes is complete.
    """

    segment: int
    codes: Codes


@dataclass(frozen=True, eq=False)
class Finished(Event):
    """All holes of the request are filled."""

    completion: Completion


@dataclass(frozen=True, eq=False)
class Failed(Event):
    """The request failed; others continue. `error` has the original error as its `__cause__`."""

    error: GenerationError


@dataclass(frozen=True, eq=False)
class Cancelled(Event):
    """The request was cancelled; its rows are free."""


#: Seeds from here on belong to candidates other than the first; users choose smaller ones.
_DERIVED = 2**62
#: Number of turns that a seed can encode: a multiple of every count up to 8, so that turns are evenly distributed.
_TURNS = 840


def candidate_seed(seed: int, index: int, turn: int = 0) -> int:
    """The seed of candidate `index` of a request.

    The first k candidates are the same for any number of candidates. Candidate 0 has the request's
    own seed, so that a picture's seed alone reproduces it. All other seeds are at least 2**62.

    Args:
        seed: of the request, 0 to 2**63 - 1.
        index: 0 or more.
        turn: encoded in the seed modulo 840 and read by `turn_of`, for example the index of the retrieved document
            that was prepended. Candidate 0 encodes none.

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
    """The turn encoded in a seed by `candidate_seed`, 0 to 839; 0 for a seed chosen by a user.

    >>> turn_of(7), turn_of(candidate_seed(7, 5)), turn_of(candidate_seed(7, 5, turn=3))
    (0, 0, 3)
    """
    return 0 if seed < _DERIVED else (seed - _DERIVED) % _TURNS


def wrong_request(number: int, error: BaseException) -> GenerationError:
    """The error of one request among several, with its cause."""
    known = parts_of(error)
    if known is not None:
        place, cause, next_step = known
        wrapped = GenerationError(f"request {number}, {place}", cause, next_step)
    else:
        wrapped = GenerationError(f"request {number}", told(error), SEE_TRACEBACK)
    wrapped.__cause__ = error
    return wrapped
