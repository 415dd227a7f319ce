"""The generation engine: `Engine.complete` fills the holes of documents, many kinds of them in one
batch.

    engine.complete(requests)       completions, in order
    engine.stream(requests)         an iterator of events: tokens, pieces of text, pictures in the making, finished, failed
    engine.open()                   a session, which requests join and leave at any time (continuous batching)

Prompts are read once: equal ones (candidates) and common beginnings (retrieved documents that
several guidance streams see) share their keys and values. `cm3core.generation.batch` has how a step
works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

from cm3core.errors import CM3Error, GenerationError
from cm3core.generation.cuda_graph import Capture, cuda_graph
from cm3core.generation.events import (
    MAX_SEED,
    Cancelled,
    Completion,
    Event,
    Failed,
    Finished,
    PictureGrown,
    Progress,
    Request,
    TextGrown,
    TokensDrawn,
    candidate_seed,
    wrong_request,
)
from cm3core.generation.prepare import Preparer
from cm3core.generation.session import Session

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.interfaces.sampler import Sampler
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary

__all__ = [
    "MAX_SEED",
    "Cancelled",
    "Completion",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "PictureGrown",
    "Progress",
    "Request",
    "Session",
    "TextGrown",
    "TokensDrawn",
    "candidate_seed",
    "candidates",
]


def candidates(request: Request, number: int, sampler: Sampler | None = None) -> list[Request]:
    """The request's first `number` candidates: each with its own seed, and the sampler's own way of
    drawing it.

    Args:
        request: the request.
        number: at least 1.
        sampler: what the request's own sampler is where it names none (the engine's).
    """
    sampler = sampler if request.sampler is None else request.sampler
    return [
        replace(
            request,
            seed=candidate_seed(request.seed, index),
            sampler=None if sampler is None else sampler.for_candidate(index),
        )
        for index in range(number)
    ]


class Engine:
    """Completes documents with one decoder.

    Args:
        decoder: on any device.
        serializer: documents -> prompts, with the text tokenizer that turns drawn ids into text.
        sampler: of requests that name none: which guidance streams, how they are mixed and
            filtered.
        vocabulary: the decoder's.
        max_text_tokens: every text of a prompt is cut to its first `max_text_tokens` tokens, as
            it was in training. None: never.
        max_rows: most stream rows in flight (a request has one for each guidance stream); it bounds
            memory.
        num_threads: of torch on the CPU while it works. None: one for a small decoder, else as they
            are.
        precision: see `Decoder.for_inference`: "auto", "fp32", "bf16" or "int8".
    """

    def __init__(
        self,
        decoder: Decoder,
        serializer: Serializer,
        sampler: Sampler,
        vocabulary: Vocabulary,
        *,
        max_text_tokens: int | None = None,
        max_rows: int = 64,
        num_threads: int | None = None,
        precision: str = "auto",
    ) -> None:
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.inference = decoder.for_inference(precision)
        #: Makes rows of a batch of requests.
        self.preparer = Preparer(
            decoder,
            self.inference,
            serializer,
            sampler,
            vocabulary,
            max_text_tokens=max_text_tokens,
            max_rows=max_rows,
            num_threads=num_threads,
        )
        #: How steps are captured: as CUDA graphs on CUDA, not at all elsewhere.
        self.capture: Capture | None = cuda_graph if self.inference.device.type == "cuda" else None

    # ---- what can be asked

    @property
    def batch_size(self) -> int:
        """How many requests are sure to be in flight at once."""
        return self.preparer.batch_size

    @property
    def sampler(self) -> Sampler:
        """Of requests that name none."""
        return self.preparer.sampler

    @property
    def max_rows(self) -> int:
        """Most stream rows in flight."""
        return self.preparer.max_rows

    def fits(self, request: Request) -> bool:
        """Whether the context holds the request's prompts and all that is to be generated."""
        return self.preparer.fits(request)

    def threads(self) -> AbstractContextManager[None]:
        """The engine's number of threads of torch on the CPU inside."""
        return self.preparer.threads()

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["raise"] = ...,
    ) -> list[Completion]: ...

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["return"],
    ) -> list[Completion | GenerationError]: ...

    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[Completion] | list[Completion | GenerationError]:
        """Fill the holes of all requests; results in the order of the requests.

        Args:
            requests: any kinds in one batch.
            progress: called after each step.
            on_error: "raise" ends the work at the first request that fails; with "return" its error
                takes the place of its completion, and the others are not concerned.

        Raises:
            GenerationError: a request has no hole, a bad seed, or doesn't fit the context (nothing
                has been generated then); or it fails.
            DocumentError: a document can't be serialised.
        """
        session = self.open(details=False)
        results: list[Completion | GenerationError | None] = [None] * len(requests)
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                number = session.submit(request)
            except CM3Error as error:
                if on_error == "raise":
                    raise
                results[place] = _refusal(place, error)
                continue
            places[number] = place
        rows = session.waiting
        total = sum(row.most_draws for row in rows)
        with self.threads():
            while session.busy:
                for event in session.step():
                    if isinstance(event, Failed):
                        if on_error == "raise":
                            raise event.error
                        results[places[event.request]] = event.error
                    elif isinstance(event, Finished):
                        results[places[event.request]] = event.completion
                if progress is not None:
                    progress(sum(row.num_drawn for row in rows), total)
        return results  # type: ignore[return-value]  # every place is filled: a session ends with each request finished or failed

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Events of the requests as they come, called by their place in `requests`; a failed
        request is reported, not raised.

        What is wrong with a request beforehand is reported first. Leaving the iterator ends the
        work."""
        session = self.open()
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                places[session.submit(request)] = place
            except CM3Error as error:
                yield Failed(place, _refusal(place, error))
        for event in session.events():
            yield replace(event, request=places[event.request])

    def open(self, *, details: bool = True) -> Session:
        """A session: requests join and leave at any time."""
        return Session(self.preparer, self.capture, details=details)


def _refusal(place: int, error: CM3Error) -> GenerationError:
    """The error of a request that can't be queued."""
    return error if isinstance(error, GenerationError) else wrong_request(place, error)
