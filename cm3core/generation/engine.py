"""The generation engine: `Engine.complete` fills the holes of documents, many kinds of them in one
batch.

    engine.complete(requests)       completions, in order
    engine.stream(requests)         an iterator of events: tokens, pieces of text, pictures in the making, finished, failed
    engine.open()                   a session, which requests join and leave at any time (continuous batching)

Prompts are read once: equal ones (candidates) and common beginnings (retrieved documents that
several guidance streams see) share their keys and values. How a step works stands in
`cm3core.generation.batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

import torch

from cm3core.document import Document, MaskedText, Segment, TextHole, has_holes
from cm3core.errors import CM3Error, GenerationError
from cm3core.generation.batch import wrong_request
from cm3core.generation.cuda_graph import Recorder, cuda_graph
from cm3core.generation.device_memory import memory_limit
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
)
from cm3core.generation.row import ActiveRequest, different
from cm3core.generation.session import Session
from cm3core.sequence.grammar import HoleGrammar, num_new_tokens

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder
    from cm3core.interfaces.sampler import Sampler, SamplingPlan
    from cm3core.sequence.serialize import Hole, Prompt, Serializer
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

#: Decoders with fewer parameters decode on one thread of the CPU: a step is some hundred operations
#: of microseconds, and threads that meet after each of them gain little on a quiet machine and lose
#: everything (30 times, measured) on a busy one.
SMALL_DECODER = 30_000_000
#: Share of the machine's memory that keys and values may take.
MEMORY_SHARE = 0.5
_MODALITIES = ("text", "image")


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
        max_text_tokens: every text of a prompt is cut to its first so many tokens, as it was in
            training. None: never.
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
        if max_rows < 1:
            raise GenerationError("max_rows", f"is {max_rows}", "use 1 or more")
        self.decoder, self.serializer, self.sampler, self.vocabulary = (
            decoder,
            serializer,
            sampler,
            vocabulary,
        )
        self.max_text_tokens, self.max_rows = max_text_tokens, max_rows
        small = sum(parameter.numel() for parameter in decoder.module.parameters()) < SMALL_DECODER
        self.num_threads = 1 if num_threads is None and small else num_threads
        self.inference = decoder.for_inference(precision)
        limit = memory_limit(self.inference.device)
        #: Bytes that keys and values may take. None: not known.
        self.cache_bytes = None if limit is None else int(limit * MEMORY_SHARE)
        #: How steps are recorded: as CUDA graphs on CUDA, not at all elsewhere.
        self.record: Recorder | None = cuda_graph if self.inference.device.type == "cuda" else None
        self._plans: dict[int, tuple[Sampler, dict[str, SamplingPlan]]] = {}
        self._plans_of(sampler)

    # ---- what can be asked

    @property
    def batch_size(self) -> int:
        """So many requests are sure to be in flight at once."""
        return max(1, self.max_rows // len(self._plans_of(self.sampler)["image"].streams))

    def fits(self, request: Request) -> bool:
        """Whether the context holds the request's prompts and all that is to be generated."""
        prompts, _ = self._prompts(request, self._plans_of(request.sampler or self.sampler))
        return all(self._excess(prompt) <= 0 for prompt in prompts)

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
            progress: called as the work goes on.
            on_error: "raise" ends the work at the first request that fails; with "return" its error
                stands in its place, and the others are not concerned.

        Raises:
            GenerationError: a request has no hole, a bad seed, or doesn't fit the context (nothing
                has been generated then); or it fails.
            DocumentError: a document can't be serialised.
        """
        session = Session(self, details=False)
        results: list[Completion | GenerationError | None] = [None] * len(requests)
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                number = session.submit(request)
            except CM3Error as error:
                if on_error == "raise":
                    raise
                results[place] = (
                    error if isinstance(error, GenerationError) else wrong_request(place, error)
                )
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
        request is told, not raised.

        What is wrong with a request beforehand is told first. Leaving the iterator ends the
        work."""
        session = Session(self)
        places: dict[int, int] = {}
        for place, request in enumerate(requests):
            try:
                places[session.submit(request)] = place
            except CM3Error as error:
                yield Failed(
                    place,
                    error if isinstance(error, GenerationError) else wrong_request(place, error),
                )
        for event in session.events():
            yield replace(event, request=places[event.request])

    def open(self, *, details: bool = True) -> Session:
        """A session: requests join and leave at any time."""
        return Session(self, details=details)

    # ---- preparing a request

    def prepare(self, number: int, request: Request) -> ActiveRequest:
        """Prompts of the streams that the request needs, checked against context and memory; raises
        `GenerationError`."""
        where = f"request {number}"
        candidate_seed(request.seed, 0)
        if not has_holes(request.document):
            raise GenerationError(
                where,
                "the document has no hole, there is nothing to complete",
                "put a TextHole, an ImageHole or missing codes where something is to be generated",
            )
        sampler = self.sampler if request.sampler is None else request.sampler
        plans = self._plans_of(sampler)
        sized = replace(request, document=self._sized(where, request, plans))
        prompts, local = self._prompts(sized, plans)
        for prompt in prompts:
            self._check_room(where, prompt)
        grammar = HoleGrammar(
            prompts[0].holes,
            self.vocabulary,
            self.serializer.text_tokenizer.vocab_size,
            self.serializer.text,
        )
        row = ActiveRequest(
            number, request, sized.document, sampler, plans, prompts, local, grammar
        )
        if len(prompts) > self.max_rows:
            raise GenerationError(
                where,
                f"has {len(prompts)} guidance streams, at most {self.max_rows} rows may be in "
                "flight",
                "raise max_rows, or use a sampler with fewer streams",
            )
        if self.exceeds_memory(len(prompts), row.longest):
            needed = self.inference.cache_bytes(row.longest) * len(prompts)
            raise GenerationError(
                where,
                f"its keys and values take {needed / 1e9:,.1f} GB, they may take "
                f"{(self.cache_bytes or 0) / 1e9:,.1f} GB",
                "generate less at once, or use a lower precision",
            )
        return row

    def exceeds_memory(self, rows: int, longest: int) -> bool:
        """Whether so many rows of so many tokens are more than memory may be used for."""
        return (
            self.cache_bytes is not None
            and rows * self.inference.cache_bytes(longest) > self.cache_bytes
        )

    @contextmanager
    def threads(self) -> Iterator[None]:
        """The engine's number of threads of torch on the CPU inside."""
        before = torch.get_num_threads()
        try:
            if self.num_threads is not None and self.num_threads != before:
                torch.set_num_threads(self.num_threads)
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def _plans_of(self, sampler: Sampler) -> dict[str, SamplingPlan]:
        """A sampler's plans, asked for once (and the sampler kept, so that its id stays its
        own)."""
        if id(sampler) not in self._plans:
            plans = {modality: sampler.plan(modality) for modality in _MODALITIES}
            variants = [[stream.variant for stream in plan.streams] for plan in plans.values()]
            assert variants[0] == variants[1], (
                "a sampler's plans must name the same streams in the same order"
            )
            if len(self._plans) > 1_000:
                self._plans.clear()
            self._plans[id(sampler)] = sampler, plans
        return self._plans[id(sampler)][1]

    def _prompts(
        self, request: Request, plans: dict[str, SamplingPlan]
    ) -> tuple[list[Prompt], list[int]]:
        """The different prompts of the request's streams, and for each stream the one that it
        reads."""
        prompts = [
            self.serializer.prompt(
                request.document,
                request.retrieved,
                stream.variant,
                max_text_tokens=self.max_text_tokens,
            )
            for stream in plans["image"].streams
        ]
        holes = prompts[0].holes
        assert all(_same_holes(holes, prompt.holes) for prompt in prompts), (
            "streams may differ in the prompt only"
        )
        modalities = {"text" if hole.kind == "text" else "image" for hole in holes}
        own = [plans[modality] for modality in _MODALITIES if modality in modalities]
        needed = [
            stream
            if any(plan.streams[stream].weight != 0 or plan.reference == stream for plan in own)
            else own[0].reference
            for stream in range(len(prompts))
        ]
        return different([prompts[stream] for stream in needed])

    def _sized(self, where: str, request: Request, plans: dict[str, SamplingPlan]) -> Document:
        """The document with text holes of any length (`max_tokens` None) given what room there is,
        in equal shares."""
        number = sum(1 for hole in _text_holes(request.document) if hole.max_tokens is None)
        if number == 0:
            return request.document
        shortest = replace(request, document=_with_max_tokens(request.document, None))
        prompts, _ = self._prompts(shortest, plans)
        share = min(-self._excess(prompt) for prompt in prompts) // number
        if share < 0:
            self._check_room(where, max(prompts, key=self._excess))
        return _with_max_tokens(request.document, share)

    def _excess(self, prompt: Prompt) -> int:
        """Tokens of the prompt and of what is to be generated beyond the decoder's context."""
        return len(prompt.tokens) + num_new_tokens(prompt.holes) - self.decoder.context_length

    def _check_room(self, where: str, prompt: Prompt) -> None:
        over = self._excess(prompt)
        if over <= 0:
            return
        num_prompt, num_new, context = (
            len(prompt.tokens),
            num_new_tokens(prompt.holes),
            self.decoder.context_length,
        )
        text = sum(hole.max_tokens for hole in prompt.holes if hole.kind == "text")
        shorter = (
            f", or write at most {text - over} text tokens instead of {text}"
            if text - over > 0
            else ""
        )
        raise GenerationError(
            where,
            f"the prompt is {num_prompt} tokens and {num_new + 1} are to be generated, "
            f"{over} more than the decoder's context of {context} holds",
            "shorten the text or retrieve fewer documents (a prompt of "
            f"{max(context - num_new, 0)} tokens "
            f"fits){shorter}",
        )


def _text_holes(document: Document) -> list[TextHole]:
    parts = [
        part
        for segment in document
        for part in (segment.parts if isinstance(segment, MaskedText) else [segment])
    ]
    return [part for part in parts if isinstance(part, TextHole)]


def _with_max_tokens(document: Document, share: int | None) -> Document:
    """Text holes of any length: each at its shortest and `share` tokens more (None: at its
    shortest)."""

    def sized(hole: TextHole) -> TextHole:
        return (
            hole
            if hole.max_tokens is not None
            else replace(hole, max_tokens=hole.min_tokens + (share or 0))
        )

    def changed(segment: Segment) -> Segment:
        if isinstance(segment, MaskedText):
            return MaskedText(
                tuple(sized(part) if isinstance(part, TextHole) else part for part in segment.parts)
            )
        return sized(segment) if isinstance(segment, TextHole) else segment

    return tuple(changed(segment) for segment in document)


def _same_holes(left: tuple[Hole, ...], right: tuple[Hole, ...]) -> bool:
    def form(hole: Hole) -> tuple[object, ...]:
        return (
            hole.segment,
            hole.kind,
            hole.prefix.tolist(),
            None if hole.cells is None else hole.cells.tolist(),
            hole.max_tokens,
            hole.ends_with,
        )

    return [form(hole) for hole in left] == [form(hole) for hole in right]
