"""The model for coroutines: many callers share one batch.

    async with AsyncModel(cm3core.load()) as model:
        pictures, text = await asyncio.gather(model.generate("a red apple", 2), model.caption("photo.png"))
        async for event in model.events("a green pear"):
            ...

Requests of all callers join the engine's batch as they arrive and leave it as they finish, see
`async_engine`. Cancelling a coroutine cancels its requests, which frees their rows at the next step.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cm3core.arguments import Count, check_value, checked
from cm3core.document import Codes, Document, PixelArray
from cm3core.errors import GenerationError
from cm3run.generation.engine import Completion, Event, Failed, Finished, Request, candidate_seed
from cm3run.model.async_engine import AsyncEngine, cancelled, in_thread, together
from cm3run.model.chatting import ReplyOptions
from cm3run.model.drawing import result_events
from cm3run.model.jobs import Job, advance, placed
from cm3run.model.loaded import check_kept
from cm3run.model.results import (
    GeneratedImage,
    GeneratedText,
    ImageReady,
    InfilledImage,
    InfillReady,
)
from cm3run.model.turns import Reply, ReplyReady, Turn

if TYPE_CHECKING:
    from cm3core.interfaces.task import Record
    from cm3run.model.loaded import Picture
    from cm3run.model.model import Model


T = TypeVar("T")


class AsyncModel:
    """A `Model` for coroutines; the requests of all callers share one batch.

    Its methods take the same arguments, except `progress`.

    Args:
        model: nothing else may use it at the same time.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.engine = AsyncEngine(model.engine)
        # for tokenizers, retrievers and rerankers, which need not be thread-safe
        self._one_at_a_time = threading.Lock()
        self._aside_since: float | None = None

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.engine.close)

    @checked(GenerationError)
    def trouble(self, seconds: float) -> str | None:
        """Describe what is wrong with the engine or the components beside it; None: nothing.

        Args:
            seconds: a single operation that takes longer counts as stuck.
        """
        since = self._aside_since
        if since is not None and (took := time.monotonic() - since) > seconds:
            return f"a tokenizer, retriever, reranker or upscaler has taken {took:.0f} s so far"
        engine: AsyncEngine = self.engine
        return engine.trouble(seconds)

    async def generate(
        self, prompt: str | Sequence[str], num_images: int | None = None, **options: Any
    ) -> list[GeneratedImage]:
        """See `Model.generate`."""
        return await self._made(self.model.image_jobs, prompt, num_images, **options)

    def events(
        self, prompt: str | Sequence[str], num_images: int | None = None, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """See `Model.events`; pictures arrive as they finish, in any order. Leaving the iterator stops the work.

        `details=False`, here and in the other event methods, omits events of partial results, which makes each
        step cheaper."""
        return self._pictures(self.model.image_jobs, prompt, num_images, **options)

    def edit_events(
        self, picture: Picture, instruction: str, num_images: int | None = None, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of `edit`, in the form of `events`."""
        return self._pictures(self.model.edit_jobs, picture, instruction, num_images, **options)

    def task_events(
        self, task: str, record: Record, prompt: str, num_images: int | None = None, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of `Model.task_jobs` with these arguments, in the form of `events`."""
        return self._pictures(self.model.task_jobs, task, record, prompt, num_images, **options)

    async def _pictures(
        self, make: Callable[..., Any], *arguments: Any, details: bool = True, **options: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of the jobs returned by `make`."""
        check_value("details", details, bool, GenerationError)
        jobs = await self._jobs(make, *arguments, **options)
        async with aclosing(self._events(jobs, details)) as events:
            async for event in events:
                yield event

    def infill_events(
        self,
        picture: Picture,
        box: Any = None,
        text: str | None = None,
        *,
        num_images: int = 1,
        seed: int = 0,
        details: bool = True,
        **options: Any,
    ) -> AsyncGenerator[Event, None]:
        """The events of `num_images` calls of `infill`; each ends with an `InfillReady`.

        The first call uses the seed, the others those of `candidate_seed`.
        """

        def jobs() -> tuple[list[Job[InfilledImage]], int]:
            check_value("seed", seed, int, GenerationError)
            check_value("num_images", num_images, Count, GenerationError)
            check_kept(self.model, num_images, "num_images", "use fewer")
            seeds = [candidate_seed(seed, place) for place in range(num_images)]
            make = self.model.infill_job
            return [make(picture, box, text, seed=own, **options)[0] for own in seeds], 0

        return self._pictures(jobs, details=details)

    async def _events(self, jobs: Sequence[Job[Any]], details: bool) -> AsyncGenerator[Event, None]:
        """Yield events of the jobs as they happen; leaving the iterator stops the work."""
        reports: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        waiting, first = [], 0
        for job in jobs:
            waiting.append(asyncio.create_task(self._report(job, first, reports, details)))
            first += job.reserved or len(job.requests)
        left = len(waiting)
        try:
            while left:
                thing = await reports.get()
                if isinstance(thing, BaseException):
                    raise thing
                left -= isinstance(thing, (ImageReady, InfillReady))
                yield thing
        finally:
            await cancelled(waiting)

    async def edit(
        self, picture: Picture, instruction: str, num_images: int | None = None, **options: Any
    ) -> list[GeneratedImage]:
        """See `Model.edit`."""
        return await self._made(self.model.edit_jobs, picture, instruction, num_images, **options)

    async def infill(
        self, picture: Picture, box: Any = None, text: str | None = None, **options: Any
    ) -> InfilledImage:
        """See `Model.infill`."""
        job, _ = await self._aside(self.model.infill_job, picture, box, text, **options)
        return await self._result(job)

    async def caption(self, picture: Picture, **options: Any) -> GeneratedText:
        """See `Model.caption`."""
        [text] = await self.captions([picture], **options)
        return text

    async def captions(self, pictures: Sequence[Picture], **options: Any) -> list[GeneratedText]:
        """See `Model.captions`."""
        return await self._made(self.model.caption_jobs, pictures, **options)

    async def ask(self, picture: Picture, question: str, **options: Any) -> GeneratedText:
        """See `Model.ask`."""
        job, _ = await self._aside(self.model.ask_job, picture, question, **options)
        return await self._result(job)

    async def chat(self, conversation: str | Sequence[Turn], **options: Any) -> Reply:
        """See `Model.chat`."""
        async with aclosing(self.chat_events(conversation, **options)) as events:
            async for event in events:
                if isinstance(event, ReplyReady):
                    return event.reply
        raise AssertionError("a stream ends with a reply")

    async def chat_events(
        self, conversation: str | Sequence[Turn], **options: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of `Model.chat_events` for one conversation. Leaving the iterator stops the work.

        Raises the errors of `Model.chat`.
        """
        chain = self.model.reply_chain(conversation, ReplyOptions.of(options))
        completion: Completion | None = None
        while True:
            events, step, reply = await self._aside(advance, chain, completion)
            for event in events:
                yield event
            if step is None:
                assert reply is not None
                yield ReplyReady(0, reply)
                return
            # an async generator, as `AsyncEngine.stream` is
            events_of_step = cast("AsyncGenerator[Event, None]", self.engine.stream(step.request))
            async with aclosing(events_of_step) as stream:
                async for event in stream:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Finished):
                        completion = event.completion
                    else:
                        yield placed(event, 0, step.part)

    async def preview(self, codes: Codes) -> PixelArray:
        """See `Model.preview`."""
        return await self._aside(self.model.preview, codes)

    async def complete(self, documents: Sequence[Document], **options: Any) -> list[Completion]:
        """See `Model.complete`."""
        requests = await self._aside(self.model.requests, documents, **options)
        return await together([self.engine.complete(request) for request in requests])

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that uses the model's tokenizers or other components, in a thread. Calls run one at a time,
        because components need not be thread-safe."""
        return await self._aside(function, *arguments)

    # ---- parts

    async def _aside(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a blocking function in a thread, so that the event loop stays free."""

        def alone() -> T:
            with self._one_at_a_time, self.engine.spare_threads():
                self._aside_since = time.monotonic()
                try:
                    return function(*arguments, **options)
                finally:
                    self._aside_since = None

        return await in_thread(alone)

    async def _jobs(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """The jobs returned by `make`, as a list; refused for more pictures than a call may keep."""
        jobs, total = await self._aside(make, *arguments, **options)
        if isinstance(jobs, list):
            return jobs
        made = list(islice(jobs, self.model.max_pictures + 1))
        if len(made) > self.model.max_pictures:
            codes = made[0].size * self.model.components.serializer.num_codes
            check_kept(self.model, max(len(made), total // codes), "num_images", "use fewer")
        return made

    async def _result(self, job: Job[T]) -> T:
        completions = await together([self.engine.complete(request) for request in job.requests])
        return await self._aside(job.finish, completions)

    async def _made(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> list[Any]:
        """The results of the jobs returned by `make`."""
        jobs = await self._jobs(make, *arguments, **options)
        return await together([self._result(job) for job in jobs])

    async def _report(
        self,
        job: Job[GeneratedImage | InfilledImage],
        first: int,
        reports: asyncio.Queue[Event | BaseException],
        details: bool,
    ) -> None:
        """Report all events of a picture's candidates, then the picture."""

        async def follow(request: Request, number: int) -> Completion:
            async for event in self.engine.stream(request, details=details):
                if isinstance(event, Failed):
                    raise event.error
                reports.put_nowait(replace(event, request=number))
                if isinstance(event, Finished):
                    return event.completion
            raise AssertionError("a stream ends with one of these")

        try:
            completions = await together(
                [follow(request, first + place) for place, request in enumerate(job.requests)]
            )
            image = await self._aside(job.finish, completions)
        except Exception as error:  # from any component; the reader of the reports raises it
            reports.put_nowait(error)
            return
        for event in result_events(first, image):
            reports.put_nowait(event)
