"""The work of requests on a model: drawing, filling and editing pictures, and texts about pictures; and the abilities of
models.

It uses only the public coroutines of `AsyncModel`. Every task first waits for its turn in the queue.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from cm3core.document import BoolArray, Codes, PixelArray
from cm3core.errors import GenerationError
from cm3core.interfaces.task import FieldType
from cm3run.model.async_engine import cancelled, in_thread
from cm3run.model.tasks import conversing_task
from cm3run.model.turns import ReplyPicture
from cm3serve.conditions import Structures
from cm3serve.documents import Naming, ShownDocuments
from cm3serve.errors import APIError, invalid_value
from cm3serve.intake import Gate

if TYPE_CHECKING:
    from cm3core.interfaces.task import TaskConfig
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model
    from cm3run.model.results import GeneratedImage, GeneratedText, InfilledImage
    from cm3serve.scheduling import FairQueue, ModelPool
    from cm3serve.settings import Limits


Ability: TypeAlias = Literal[
    "draw", "fill", "caption", "ask", "edit", "chat", "turns", "boxes", "structure"
]
#: Abilities that are tasks with certain fields, under any name: the given fields, and the type of the
#: requested one.
SHAPES: Mapping[str, tuple[Mapping[str, FieldType], FieldType]] = {
    "chat": ({"image": "image", "conversation": "text"}, "text"),
    "boxes": ({"caption": "text", "objects": "text"}, "image"),
    "structure": ({"feature": "text", "condition": "image", "caption": "text"}, "image"),
}
#: Ability -> its description for messages, and what to do for a model without it.
_REFUSALS: Mapping[str, tuple[str, str]] = {
    "edit": (
        "edit pictures by instruction",
        "fill a part of the picture instead (mask), or start the server with --force edit",
    ),
    "ask": (
        "answer questions",
        "send the picture without a question for a caption, or start the server with --force ask",
    ),
    "boxes": (
        "draw objects at boxes",
        "leave out boxes, or serve a model that was tuned for object_to_image",
    ),
    "structure": (
        "draw by a picture of a structure",
        "leave out condition, or serve a model that was tuned for structure",
    ),
}


def task_of(model: Model, ability: str) -> str | None:
    """The name of the model's task for one of `SHAPES`, or None."""
    given, response = SHAPES[ability]
    for name, config in model.tasks.configs.items():
        if _shape(config) == (given, [response]):
            return name
    return None


def _shape(config: TaskConfig) -> tuple[Mapping[str, FieldType], list[FieldType]]:
    task = config.build()
    given = {name: task.fields[name] for name in task.given}
    return given, [task.fields[name] for name in task.responses]


def in_turns(model: Model) -> bool:
    """Whether a model converses in its layout's turns, with pictures on both sides."""
    has_turns = model.components.serializer.layout.has_turns
    return model.tasks.turns and has_turns and conversing_task(model) is None


def able(model: Model, forced: Collection[str]) -> list[str]:
    """The model's known and forced abilities, without those that its layout has no sequences for, or that need places of
    a picture, which sequences have none of.

    A model that was not tuned draws, fills and captions, as it was trained to.
    """
    serializer = model.components.serializer
    reads = serializer.layout.reads_pictures
    fills = serializer.max_spans > 0 and not serializer.form.is_sequence
    describes = reads and serializer.layout.writes_text
    tuned = model.tasks
    serves = {vars(type(config)).get("serves") for config in tuned.configs.values()}
    plain = not tuned.names or tuned.plain
    known = {
        "draw": plain or "generate" in serves,
        "fill": True,
        "caption": plain or "caption" in serves,
        "ask": "ask" in serves,
        "edit": "edit" in serves,
        "turns": in_turns(model),
        **{name: task_of(model, name) is not None for name in SHAPES},
    }
    impossible = {
        *(() if fills else ("fill",)),
        *(() if reads else ("edit", "structure")),
        *(() if describes else ("caption", "ask", "chat")),
    }
    return [
        name for name, can in known.items() if (can or name in forced) and name not in impossible
    ]


def refuse_untuned(model: Model, ability: str, forced: Collection[str]) -> bool:
    """Whether the model must be forced to do it.

    Raises:
        APIError: the model is not known to have the ability, and isn't forced.
    """
    if ability not in able(model, forced):
        what, instead = _REFUSALS[ability]
        raise APIError(
            400,
            f"the model is not known to be tuned to {what}, so its results would be "
            f"meaningless; {instead}",
            code="not_supported_by_model",
        )
    return ability not in able(model, ())


#: Maximum number of pictures whose codes are remembered; each takes a few KB.
MOST_DRAWN = 1024


class DrawnPictures:
    """Recent pictures of replies, by their pixels. It keeps only codes, seed and log-probability, and may be
    used by any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, ReplyPicture] = OrderedDict()
        self._lock = Lock()

    def remember(self, model: str, picture: ReplyPicture) -> None:
        """Remember a picture that `model` drew."""
        empty = np.zeros((0, 0, 3), np.uint8)
        facts = picture.codes, picture.seed, picture.log_probability
        with self._lock:
            self._kept[_key(model, picture.pixels)] = ReplyPicture(empty, *facts)
            while len(self._kept) > MOST_DRAWN:
                self._kept.popitem(last=False)

    def find(self, model: str, pixels: PixelArray) -> PixelArray | ReplyPicture:
        """The picture as `model` drew it; the pixels themselves if it did not, or long ago."""
        with self._lock:
            found = self._kept.get(_key(model, pixels))
        if found is None:
            return pixels
        return ReplyPicture(pixels, found.codes, found.seed, found.log_probability)


def _key(model: str, pixels: PixelArray) -> bytes:
    digest = hashlib.sha256(f"{model} {pixels.shape} ".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.digest()


#: Maximum number of unknown words to report for a request, because the search for similar words
#: takes a while.
MOST_WORDS = 8
Picture: TypeAlias = "GeneratedImage | InfilledImage"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Partial:
    """A partial picture: `pixels` are grey where nothing is drawn yet.

    `picture` is its position among the results, `number` counts its partial pictures, and `rows` of
    `all_rows` are finished; of pictures in one row, such as sequences, codes instead of rows.
    """

    picture: int
    number: int
    pixels: PixelArray
    rows: int
    all_rows: int


@dataclass(frozen=True, eq=False)
class Drawn:
    """A finished picture, and its position among the results."""

    picture: int
    result: Picture


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureTask:
    """The work of one request.

    Args:
        sort: "draw" the text, "fill" the mask of the picture, "edit" the picture by the text, or draw
            the text at "boxes" or after a "structure".
        text: the prompt; None: the model writes its own caption for the picture to fill.
        number: results per prompt.
        texts: several prompts to "draw" instead of `text`, for a set.
        options: options of `Model.generate` and similar methods.
        partials: number of requested partial pictures per result.
        picture: the picture to fill or edit.
        mask: the part to fill, bool [height, width].
        upscale: whether the model's upscaler enlarges results.
        record: the boxes or structure, see `condition_of`.
    """

    sort: Literal["draw", "fill", "edit", "boxes", "structure"]
    text: str | None
    number: int
    options: Mapping[str, Any]
    partials: int = 0
    picture: PixelArray | None = None
    mask: BoolArray | None = None
    upscale: bool = False
    texts: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> int:
        """The number of results of all prompts."""
        return self.number * max(1, len(self.texts))


@dataclass(eq=False)
class Workshop:
    """The state that all tasks share.

    Args:
        pool: the models.
        queue: the queue for generation.
        limits: the limits of requests.
        forced: "edit" and "ask" if untuned models may be used for them.
        on_finished: called with the sort of each finished result.
        structures: extracts structures from pictures.
    """

    pool: ModelPool
    queue: FairQueue
    limits: Limits
    forced: frozenset[str] = frozenset()
    on_finished: Callable[[str], None] = lambda sort: None
    structures: Structures = field(default_factory=Structures)
    #: Recent pictures of replies.
    drawn: DrawnPictures = field(default_factory=DrawnPictures)
    #: Prepended documents of recent results.
    shown: ShownDocuments = field(default_factory=ShownDocuments)
    #: Room for uploads and for responses, by the limits.
    gate: Gate = None  # type: ignore[assignment]  # see `__post_init__`
    _previewing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _rest_until: float = 0.0

    def __post_init__(self) -> None:
        self.gate = self.gate or Gate(self.limits)

    @asynccontextmanager
    async def turn(
        self, client: str, model: str, number: int, options: Mapping[str, Any]
    ) -> AsyncIterator[AsyncModel]:
        """Context with the model, once it is the request's turn."""
        async with self.pool.use(model) as loaded:
            weight = self.weight_of(loaded.model, number, options)
            async with self.queue.place(client, weight):
                try:
                    yield loaded
                except GenerationError as error:
                    if (
                        error.place == "engine"
                    ):  # its thread has ended; the next request reloads the model
                        self.pool.forget(model, loaded)
                    raise

    def naming(self, model: str, values: Mapping[str, Any]) -> Naming:
        """Describes the documents of a model's results, with their pictures if the request asks for them."""
        return Naming(self.shown, model, bool(values.get("return_documents")))

    def weight_of(self, model: Model, number: int, options: Mapping[str, Any]) -> int:
        """The number of results and candidates of a request; raises `APIError` if there are too many."""
        each = options.get("num_candidates", model.recipe.generate.num_candidates)
        weight: int = number * each
        if weight > self.limits.at_once:
            raise invalid_value(
                "n",
                f"{number} results of {each} candidates are {weight}, at most "
                f"{self.limits.at_once} are generated for one request",
            )
        return weight

    async def unknown_words(
        self, model: str, texts: Sequence[str | None]
    ) -> dict[str, str | None] | None:
        """The first `MOST_WORDS` words that are in none of the model's training texts, each with the most
        similar known word, see `Model.unknown_words`; None if the model's words are unknown."""
        async with self.pool.use(model) as loaded:
            words = loaded.model.words
        if words is None:
            return None

        def look() -> dict[str, str | None]:
            unknown = islice(words.unknown(" ".join(text for text in texts if text)), MOST_WORDS)
            return {word: words.nearest(word) for word in unknown}

        return await in_thread(look)

    async def call(self, model: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function with exclusive use of the model's tokenizers."""
        async with self.pool.use(model) as loaded:
            return await loaded.call(function, *arguments)

    # ---- pictures

    async def pictures(
        self, client: str, model: str, task: PictureTask
    ) -> AsyncGenerator[Partial | Drawn, None]:
        """The task's pictures as they finish, in any order, with partial ones between.

        Its place in the queue is free once the last one is drawn, even if the consumer is slow.
        """
        growing = Growing(task.partials)
        async with aclosing(newest(self._made(client, model, task), growing)) as events:
            async for one in events:
                if one.is_ready:
                    yield Drawn(one.picture, one.event.image)
                    continue
                rows, all_rows = rows_of(one.event.codes)
                number = growing.number(one.picture)
                pixels = await self._preview(one.model, one.event.codes, growing)
                yield Partial(one.picture, number, pixels, rows, all_rows)

    async def _made(self, client: str, model: str, task: PictureTask) -> AsyncGenerator[Made, None]:
        """The engine's events, once it is the request's turn."""
        async with self.turn(client, model, task.results, task.options) as loaded:
            force = task.sort in _TUNED and refuse_untuned(loaded.model, task.sort, self.forced)
            each = task.options.get("num_candidates", loaded.model.recipe.generate.num_candidates)
            async with aclosing(_stream(loaded, task, force)) as events:
                async for event in events:
                    picture, candidate = divmod(event.request, each)
                    one = Made(loaded, picture, candidate, event)
                    if one.is_ready:
                        self.on_finished(task.sort)
                    yield one

    async def _preview(self, loaded: AsyncModel, codes: Codes, growing: Growing) -> PixelArray:
        """The pixels of a partial picture. If many are requested, decoding them takes at most a third of one core's
        time, because drawing comes first."""
        if growing.all_are_sent:
            return await loaded.preview(codes)
        async with self._previewing:
            start = time.monotonic()
            await asyncio.sleep(self._rest_until - start)
            start = time.monotonic()
            pixels = await loaded.preview(codes)
            self._rest_until = time.monotonic() + 2 * (time.monotonic() - start)
            return pixels

    # ---- texts

    async def text(
        self,
        client: str,
        model: str,
        picture: PixelArray,
        question: str | None,
        options: Mapping[str, Any],
    ) -> tuple[GeneratedText, AsyncModel]:
        """A caption of the picture, or an answer to the question, and the model that wrote it.

        `options` may name the task.
        """
        async with self.turn(client, model, 1, options) as loaded:
            if question is None:
                result = await loaded.caption(picture, **options)
            else:
                force = "task" not in options and refuse_untuned(loaded.model, "ask", self.forced)
                result = await loaded.ask(picture, question, force=force, **options)
            self.on_finished("caption" if question is None else "ask")
            return result, loaded


#: Sorts of tasks that a model must have been tuned for.
_TUNED = ("edit", "boxes", "structure")


def _stream(loaded: AsyncModel, task: PictureTask, force: bool) -> AsyncGenerator[Any, None]:
    """The task's events, with pictures numbered by their first candidate."""
    options: dict[str, Any] = {**task.options, "details": task.partials > 0}
    text = task.text or ""
    if task.sort == "fill":
        assert task.picture is not None
        return loaded.infill_events(
            task.picture, None, task.text, num_images=task.number, mask=task.mask, **options
        )
    options["upscale"] = task.upscale
    if task.sort == "draw":
        return loaded.events(task.texts or text, task.number, **options)
    if task.sort == "edit":
        assert task.picture is not None
        return loaded.edit_events(task.picture, text, task.number, force=force, **options)
    name = task_of(loaded.model, task.sort)
    assert name is not None
    return loaded.task_events(name, {"caption": text, **task.record}, text, task.number, **options)


class Growing:
    """Decides which partial pictures are due.

    OpenAI's API has up to three, and each of them is sent. If more are requested, those that are overtaken by a
    newer one before they are decoded are left out. They are at equal distances. How many codes a sequence will have is
    not known before, so a sequence also has one whenever the number of its codes has doubled.

    Args:
        partials: the requested number per result.
    """

    MOST_SENT = 3

    def __init__(self, partials: int) -> None:
        self.partials, self.all_are_sent = partials, partials <= self.MOST_SENT
        #: How many have been due, and how much of the picture was finished then.
        self._due: dict[int, tuple[int, int]] = {}
        self._numbers: dict[int, int] = {}

    def is_due(self, picture: int, codes: Codes) -> bool:
        """Whether enough rows were finished since the last one."""
        rows, all_rows = rows_of(codes)
        number, last = self._due.get(picture, (0, 0))
        if codes.grid[0] == 1:
            far = rows >= 2 * last or (rows - last) * (self.partials + 1) >= all_rows
            due = min(number + far * (rows > 0), self.partials)
        else:
            due = rows * (self.partials + 1) // all_rows
        if due <= number or rows == all_rows:
            return False
        self._due[picture] = due, rows
        return True

    def number(self, picture: int) -> int:
        """The number of the next partial picture."""
        number = self._numbers.get(picture, 0)
        self._numbers[picture] = number + 1
        return number


class Made(NamedTuple):
    """An event of a picture's candidate, and its model."""

    model: AsyncModel
    picture: int
    candidate: int
    event: Any

    @property
    def is_ready(self) -> bool:
        """Whether the picture is finished."""
        from cm3run.model.results import ImageReady, InfillReady

        return isinstance(self.event, (ImageReady, InfillReady))


async def ahead(events: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same events, read as they come even if the consumer is slow, so that the generator releases its resources,
    such as a place in the queue, with its last event."""
    waiting: asyncio.Queue[tuple[T] | None] = asyncio.Queue()

    async def read() -> None:
        async with aclosing(events):
            async for event in events:
                waiting.put_nowait((event,))

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: waiting.put_nowait(None))
    try:
        while (one := await waiting.get()) is not None:
            yield one[0]
        reader.result()
    finally:
        await cancelled([reader])


async def newest(
    events: AsyncGenerator[Made, None], growing: Growing
) -> AsyncGenerator[Made, None]:
    """Finished pictures, and the partial pictures that are due, of each picture's first candidate. The events are
    read `ahead`.

    Args:
        events: the events of all candidates.
        growing: decides which partial pictures are due.
    """
    from cm3run.generation.engine import PictureGrown

    latest: dict[int, Made] = {}

    async def due() -> AsyncGenerator[Made | int, None]:
        async with aclosing(events):
            async for one in events:
                if one.is_ready:
                    latest.pop(one.picture, None)
                    yield one
                elif (
                    isinstance(one.event, PictureGrown)
                    and one.candidate == 0
                    and growing.is_due(one.picture, one.event.codes)
                ):
                    if growing.all_are_sent:
                        yield one
                        continue
                    was_there = one.picture in latest
                    latest[one.picture] = one
                    if not was_there:
                        yield one.picture

    async with aclosing(ahead(due())) as waiting:
        async for thing in waiting:
            found = latest.pop(thing, None) if isinstance(thing, int) else thing
            if found is not None:
                yield found


def rows_of(codes: Codes) -> tuple[int, int]:
    """The number of finished rows of a partial picture, and the number of all rows; of a picture in one row, such as a
    sequence, codes instead of rows."""
    rows, columns = codes.grid
    all_rows = columns if rows == 1 else rows
    if codes.missing is None:
        return all_rows, all_rows
    return int((~codes.missing.reshape(all_rows, -1)).all(1).sum()), all_rows


async def in_order(events: AsyncGenerator[Partial | Drawn, None], number: int) -> Sequence[Picture]:
    """The finished pictures of a task, in order."""
    found: dict[int, Picture] = {}
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Drawn):
                found[event.picture] = event.result
    return [found[place] for place in range(number)]


def transparent(alpha: np.ndarray[Any, np.dtype[np.uint8]]) -> BoolArray:
    """The part that a mask marks: its fully transparent pixels, as in OpenAI's API."""
    marked: BoolArray = alpha == 0
    return marked
