"""Preparing requests: check their prompts against context and memory before they join a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import torch

from cm3core.document import Document, MaskedText, Segment, Text, TextHole, has_holes
from cm3core.errors import GenerationError
from cm3core.interfaces.component import broken, shown
from cm3core.interfaces.sampler import SamplingPlan, StatefulSampler
from cm3core.interfaces.sampler_state import RequestStart
from cm3core.recipe.sections import MOST_AHEAD
from cm3core.sequence.grammar import HoleGrammar, num_new_tokens, num_unlimited, with_limits
from cm3run.devices import cache_limit
from cm3run.generation.events import Request, candidate_seed
from cm3run.generation.jacobi import Window
from cm3run.generation.prompts import KeptPrefixes
from cm3run.generation.row import ActiveRequest, different
from cm3run.generation.sampling import RequestState, reads_stream

if TYPE_CHECKING:
    from cm3core.interfaces.decoder import Decoder, InferenceDecoder
    from cm3core.interfaces.sampler import Sampler
    from cm3core.sequence.grammar import Hole
    from cm3core.sequence.prompt_writer import Prompt
    from cm3core.sequence.serialize import Serializer
    from cm3core.vocab import Vocabulary

#: Decoders with fewer parameters decode on one CPU thread. A step is some hundred operations of microseconds each;
#: threads that synchronise after each operation gain little on an idle machine and are 30 times slower (measured) on
#: a busy one.
SMALL_DECODER = 30_000_000
#: Stream rows per step from which even a small decoder benefits from several threads.
MANY_ROWS = 24
#: Sessions of a small decoder that run side by side; more than two were not tried.
MOST_SESSIONS = 2
#: More threads than any machine has; torch aborts the process when it can't start them.
MAX_THREADS = 4096
#: Samplers whose plans are cached.
NUM_PLANS = 16
_MODALITIES = ("text", "image")
#: Next steps for a text that is too long.
SHORTEN = "shorten it"
SHORTEN_OR_TRUNCATE = "shorten it, or read only its beginning (truncate)"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The limits of an engine: memory, threads, precision, and the length of texts.

    Args:
        max_text_tokens: most tokens of a text in training. Texts of retrieved documents are cut to this, as in
            training; longer texts of a request are refused, or cut with `Request.truncate`. None: any length.
        max_rows: maximum number of stream rows in flight (a request has one per guidance stream);
            bounds memory.
        num_threads: CPU threads of torch during generation. None: one for steps of few rows of a small decoder,
            otherwise unchanged.
        precision: see `Decoder.for_inference`: "auto", "fp32", "bf16", "int8" or "int4". The engine does not
            measure precisions; `Model` does.
        window: codes of a picture drawn per step, see `cm3run.generation.jacobi`. The result is the same for any
            window, with fewer forward passes for a larger one. 1: one code per step. "auto": as many as gain most
            by the codes accepted, on a CPU; one per step on CUDA, where steps of several codes are not captured.
    """

    max_text_tokens: int | None = None
    max_rows: int = 64
    num_threads: int | None = None
    precision: str = "auto"
    window: Window = 1


class Preparer:
    """Turns each request into a row of a batch, or reports why it can't be completed.

    Args:
        decoder: its context length and size are used; the size decides the number of threads.
        inference: the same decoder prepared for inference; it completes the prepared requests.
        serializer, sampler, vocabulary, options: see `Engine`.
    """

    def __init__(
        self,
        decoder: Decoder,
        inference: InferenceDecoder,
        serializer: Serializer,
        sampler: Sampler,
        vocabulary: Vocabulary,
        options: EngineOptions,
    ) -> None:
        max_rows, num_threads = options.max_rows, options.num_threads
        if max_rows < 1:
            raise GenerationError("max_rows", f"is {max_rows}", "use 1 or more")
        if num_threads is not None and not 1 <= num_threads <= MAX_THREADS:
            raise GenerationError("num_threads", f"is {num_threads}", f"use 1 to {MAX_THREADS:,}")
        self.decoder, self.inference = decoder, inference
        self.serializer, self.sampler, self.vocabulary = serializer, sampler, vocabulary
        window = options.window
        if window != "auto" and not 1 <= window <= MOST_AHEAD:
            raise GenerationError("window", f"is {window}", f"use 1 to {MOST_AHEAD}, or 'auto'")
        #: Codes of a picture drawn per step, see `cm3run.generation.jacobi`.
        self.window = window
        self.max_text_tokens, self.max_rows = options.max_text_tokens, max_rows
        small = sum(parameter.numel() for parameter in decoder.module.parameters()) < SMALL_DECODER
        self.num_threads = 1 if num_threads is None and small else num_threads
        #: CPU threads for steps of many rows of a small decoder. None: as for any other step.
        self._many_threads = torch.get_num_threads() if num_threads is None and small else None
        #: Maximum bytes of keys and values. None: unknown.
        self.cache_bytes = cache_limit(decoder.module, inference.device, inference.weight_bytes())
        #: Keys and values of finished requests, see `Request.keep`.
        self.kept = KeptPrefixes(inference.cache_bytes, self.cache_bytes)
        self._plans: dict[int, tuple[Sampler, dict[str, SamplingPlan]]] = {}
        self._plans_lock = Lock()
        self._plans_of(sampler)

    @property
    def batch_size(self) -> int:
        """Number of requests with the engine's sampler that are sure to fit in flight at once."""
        return max(1, self.max_rows // len(self._plans_of(self.sampler)["image"].streams))

    def fits(self, request: Request) -> bool:
        """Whether the request's prompts and everything to be generated fit the context."""
        prompts, _ = self._prompts(request, self._plans_of(request.sampler or self.sampler))
        return all(self._excess(prompt) <= 0 for prompt in prompts)

    def prepare(self, number: int, request: Request) -> ActiveRequest:
        """Turn a request into a row, after checking its prompts against context and memory.

        Raises `GenerationError`.
        """
        where = f"request {number}"
        candidate_seed(request.seed, 0)
        if not has_holes(request.document):
            raise GenerationError(
                where,
                "the document has no hole, so there is nothing to complete",
                "put a TextHole, an ImageHole or missing codes where something should be generated",
            )
        sampler = self.sampler if request.sampler is None else request.sampler
        plans = self._plans_of(sampler)
        self._check_texts(where, request, plans)
        sized = replace(request, document=self._sized(where, request, plans))
        prompts, local = self._prompts(sized, plans)
        for prompt in prompts:
            self._check_room(where, prompt)
        grammar = HoleGrammar(
            prompts[0].holes,
            self.vocabulary,
            self.serializer.text_tokenizer.vocab_size,
            self.serializer.text,
            self.serializer.ids_that_begin,
            self.serializer.code_grammar,
        )
        state = None
        if isinstance(sampler, StatefulSampler):
            start = RequestStart(
                request.seed, sized.document, request.retrieved, self.serializer.grid
            )
            state = RequestState(sampler, start, grammar)
        row = ActiveRequest(
            number, request, sized.document, sampler, plans, prompts, local, grammar, state
        )
        if len(prompts) > self.max_rows:
            raise GenerationError(
                where,
                f"has {len(prompts)} guidance streams, but at most {self.max_rows} rows may be in "
                "flight",
                "raise max_rows, or use a sampler with fewer streams",
            )
        if self.exceeds_memory(len(prompts), row.longest):
            needed = self.inference.cache_bytes(row.longest) * len(prompts)
            raise GenerationError(
                where,
                f"its keys and values take {needed / 1e9:,.1f} GB, but may take at most "
                f"{(self.cache_bytes or 0) / 1e9:,.1f} GB",
                "generate less at once, or use a lower precision",
            )
        return row

    def exceeds_memory(self, rows: int, longest: int, share: float = 1.0) -> bool:
        """Whether `rows` rows of `longest` tokens exceed this share of the memory for keys and values."""
        return (
            self.cache_bytes is not None
            and rows * self.inference.cache_bytes(longest) > share * self.cache_bytes
        )

    def make_room(self, rows: int, longest: int, share: float = 1.0) -> None:
        """Drop kept prefixes until each of several sessions with this share has memory for `rows` rows of `longest`
        tokens."""
        if self.cache_bytes is not None:
            needed = rows * self.inference.cache_bytes(longest)
            self.kept.shrink(int(self.cache_bytes - needed / share))

    @property
    def num_sessions(self) -> int:
        """The number of side-by-side sessions that completes many callers' requests fastest."""
        if self._many_threads is None or self.inference.device.type != "cpu":
            return 1
        number = min(MOST_SESSIONS, self._many_threads)
        # a single request may exceed its session's share
        return (
            1
            if self.exceeds_memory(number * self.max_rows, self.inference.context_length)
            else number
        )

    def threads(self, num_rows: int = 1, num_sharing: int = 1) -> AbstractContextManager[None]:
        """A context in which torch uses `num_threads` CPU threads, for a step of `num_rows` stream rows while
        `num_sharing` sessions share the threads."""
        number = self.num_threads
        if self._many_threads is not None and num_rows >= MANY_ROWS:
            number = max(1, self._many_threads // num_sharing)
        return using_threads(number)

    def _plans_of(self, sampler: Sampler) -> dict[str, SamplingPlan]:
        """A sampler's plans, cached for the last `NUM_PLANS` samplers. The samplers are kept too, so that their ids
        are not reused. Not all are kept: most requests bring their own sampler, which may be large."""
        with self._plans_lock:
            return self._known_plans(sampler)

    def _known_plans(self, sampler: Sampler) -> dict[str, SamplingPlan]:
        known = self._plans.pop(id(sampler), None)
        if known is None:
            plans = {modality: sampler.plan(modality) for modality in _MODALITIES}
            for plan in plans.values():
                if not isinstance(plan, SamplingPlan):
                    raise broken(
                        sampler,
                        "plans_are_constant_and_name_the_same_streams",
                        f"its plan is {shown(plan)}, not a SamplingPlan",
                    )
            variants = [[stream.variant for stream in plan.streams] for plan in plans.values()]
            if variants[0] != variants[1]:
                raise broken(
                    sampler,
                    "plans_are_constant_and_name_the_same_streams",
                    "its plans for texts and pictures name different streams",
                )
            known = sampler, plans
        self._plans[id(sampler)] = known  # move to the most recent end
        if len(self._plans) > NUM_PLANS:
            self._plans.pop(next(iter(self._plans)), None)
        return known[1]

    def _prompts(
        self, request: Request, plans: dict[str, SamplingPlan]
    ) -> tuple[list[Prompt], list[int]]:
        """The distinct prompts of the request's streams, and for each stream the index of its prompt."""
        prompts = [
            self.serializer.prompt(
                request.document,
                request.retrieved,
                stream.variant,
                max_text_tokens=self.max_text_tokens,
                control=request.control,
            )
            for stream in plans["image"].streams
        ]
        holes = prompts[0].holes
        assert all(_same_holes(holes, prompt.holes) for prompt in prompts), (
            "streams may differ only in the prompt"
        )
        modalities = {"text" if hole.kind == "text" else "image" for hole in holes}
        own = [plans[modality] for modality in _MODALITIES if modality in modalities]
        needed = [
            stream if any(reads_stream(plan, stream) for plan in own) else own[0].reference
            for stream in range(len(prompts))
        ]
        return different([prompts[stream] for stream in needed])

    def _check_texts(self, where: str, request: Request, plans: dict[str, SamplingPlan]) -> None:
        """Raise `GenerationError` if a text of the document or a stream's replacement text would be cut. A text with
        holes is never cut, because its continuation would be lost."""
        limit = self.max_text_tokens
        if limit is None:
            return
        read: list[tuple[str, tuple[str | TextHole, ...]]] = [
            (f"{where}, segment {index}", self._parts(segment))
            for index, segment in enumerate(request.document)
        ]
        read += [
            (f"{where}, negative prompt", (stream.variant.replace_text,))
            for stream in plans["image"].streams
            if stream.variant.replace_text is not None
        ]
        for place, parts in read:
            known = [part for part in parts if isinstance(part, str)]
            num_holes = len(parts) - len(known)
            if num_holes == 0 and request.truncate:
                continue
            number = sum(len(self.serializer.text_tokens(part)) for part in known)
            if number + num_holes > limit:
                context = self.decoder.context_length
                next_step = SHORTEN if num_holes else SHORTEN_OR_TRUNCATE
                without = ", not counting its holes" if num_holes else ""
                raise too_long(place, number, limit, context, next_step, without)

    def _parts(self, segment: Segment) -> tuple[str | TextHole, ...]:
        """The pieces of a text segment as in prompts; empty for other segments."""
        if isinstance(segment, MaskedText):
            return self.serializer.without_leads(segment)[0].parts
        return (segment.text,) if isinstance(segment, Text) else ()

    def _sized(self, where: str, request: Request, plans: dict[str, SamplingPlan]) -> Document:
        """The document with the free context shared equally among text holes without a limit
        (`max_tokens` is None).
        """
        number = num_unlimited(request.document)
        if number == 0:
            return request.document
        shortest = replace(
            request, document=with_limits(request.document, lambda hole: max(1, hole.min_tokens))
        )
        prompts, _ = self._prompts(shortest, plans)
        share = min(-self._excess(prompt) for prompt in prompts) // number
        if share < 0:
            self._check_room(where, max(prompts, key=self._excess))
        return with_limits(request.document, lambda hole: max(1, hole.min_tokens) + share)

    def _excess(self, prompt: Prompt) -> int:
        """Tokens of prompt and generation beyond the decoder's context."""
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


@contextmanager
def using_threads(number: int | None) -> Iterator[None]:
    """A context in which torch uses this many CPU threads in this thread. None: unchanged."""
    before = torch.get_num_threads()
    try:
        if number is not None and number != before:
            torch.set_num_threads(number)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def too_long(
    place: str, number: int, limit: int, context: int, next_step: str, without: str = ""
) -> GenerationError:
    """The error for a text of `number` tokens where training had at most `limit`; `without`: names uncounted
    parts."""
    return GenerationError(
        place,
        f"is {number} tokens long{without}; the model was trained on texts of at most {limit}, "
        f"in a context of {context}",
        next_step,
    )


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
