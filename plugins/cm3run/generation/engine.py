"""The generation engine: fills the holes of documents, of many kinds in one batch.

    engine.complete(requests)       completions, in order
    engine.stream(requests)         an iterator of events: tokens, pieces of text, partial pictures, finished, failed
    engine.open()                   a session, which requests join and leave at any time (continuous batching)

Prompts are read once: equal ones (candidates) and common prefixes (retrieved documents that several
guidance streams see) share their keys and values. `cm3run.generation.batch` describes a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

from cm3core.errors import CM3Error, GenerationError
from cm3run.generation.cuda_graph import Capture, cuda_graph
from cm3run.generation.events import (
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
    turn_of,
    wrong_request,
)
from cm3run.generation.prepare import Preparer
from cm3run.generation.session import Session

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder, InferenceDecoder
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
    "turn_of",
]


def candidates(request: Request, number: int, sampler: Sampler | None = None) -> list[Request]:
    """The request's first `number` candidates, each with its own seed and sampler.

    Args:
        request: the request.
        number: at least 1.
        sampler: used when the request names none (the engine's).
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
        sampler: for requests that name none: which guidance streams, and how they are mixed and
            filtered.
        vocabulary: the decoder's.
        max_text_tokens: most tokens of a text in training. Texts of retrieved documents are cut to
            it, as in training; longer ones in a request are refused, or cut too (see
            `Request.truncate`). None: any length.
        max_rows: maximum number of stream rows in flight (a request has one per guidance stream);
            it bounds memory.
        num_threads: threads of torch on the CPU during generation. None: one for a small decoder's steps of
            few rows, else unchanged.
        precision: see `Decoder.for_inference`: "auto", "fp32", "bf16", "int8" or "int4". Nothing is
            measured here: `Model` does that.
        inference: the decoder, already arranged for generation; `precision` is its own then.
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
        inference: InferenceDecoder | None = None,
    ) -> None:
        self.decoder, self.serializer, self.vocabulary = decoder, serializer, vocabulary
        self.inference = decoder.for_inference(precision) if inference is None else inference
        #: Turns requests into rows of a batch.
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
        device = self.inference.device
        self.capture: Capture | None = (
            partial(cuda_graph, device=device) if device.type == "cuda" else None
        )

    # ---- queries

    @property
    def batch_size(self) -> int:
        """Number of requests that can always be in flight at once."""
        return self.preparer.batch_size

    @property
    def sampler(self) -> Sampler:
        """The sampler of requests that name none."""
        return self.preparer.sampler

    @property
    def max_rows(self) -> int:
        """Maximum number of stream rows in flight."""
        return self.preparer.max_rows

    def fits(self, request: Request) -> bool:
        """Whether the context holds the request's prompts and everything to be generated."""
        return self.preparer.fits(request)

    def threads(self) -> AbstractContextManager[None]:
        """Context in which torch uses the engine's number of threads on the CPU."""
        return self.preparer.threads()

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["raise"] = ...,
        record: bool = ...,
    ) -> list[Completion]: ...

    @overload
    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = ...,
        on_error: Literal["return"],
        record: bool = ...,
    ) -> list[Completion | GenerationError]: ...

    def complete(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        on_error: Literal["raise", "return"] = "raise",
        record: bool = False,
    ) -> list[Completion] | list[Completion | GenerationError]:
        """Fill the holes of all requests; results are in the order of the requests.

        Args:
            requests: any kinds in one batch.
            progress: called after each step.
            on_error: "raise" stops at the first request that fails; with "return" its error takes
                the place of its completion, and the others are not affected.
            record: keep the log-probabilities of every token in `Completion.trace`.

        Raises:
            GenerationError: a request has no hole, has an invalid seed, or doesn't fit the context
                (before anything is generated); or it fails.
            DocumentError: a document can't be serialised.
        """
        session = self.open(details=False, record=record)
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
        """Events of the requests as they happen, numbered by position in `requests`.

        A failed request is reported, not raised; invalid requests are reported first. Leaving the
        iterator ends the work.
        """
        session = self.open()
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                places[session.submit(request)] = place
            except CM3Error as error:
                yield Failed(place, _refusal(place, error))
        for event in session.events():
            yield replace(event, request=places[event.request])

    def open(self, *, details: bool = True, record: bool = False, share: float = 1.0) -> Session:
        """A session, which requests join and leave at any time; for the arguments see `Session`."""
        return Session(self.preparer, self.capture, details=details, record=record, share=share)


def _refusal(place: int, error: CM3Error) -> GenerationError:
    """The error of a request that can't be queued."""
    return error if isinstance(error, GenerationError) else wrong_request(place, error)
