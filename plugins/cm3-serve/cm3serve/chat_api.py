"""`/v1/chat/completions`: a picture for a text, a conversation about a picture, or an edited picture. Models whose layout
has turns exchange pictures in both directions and stream text token by token.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cm3core.images import fit
from cm3run.generation.engine import PictureGrown, TextGrown, candidate_seed
from cm3run.model.facts import facts_of as picture_facts
from cm3run.model.facts import facts_of_reply
from cm3run.model.loaded import check_length
from cm3run.model.turns import SPEAKERS, Reply, ReplyPart, ReplyPicture, ReplyReady, Turn
from cm3serve.errors import APIError, invalid_value
from cm3serve.fields import Field
from cm3serve.images_api import check_sampling, documents_of, facts_of, generation_options
from cm3serve.intake import Intake
from cm3serve.pictures import Output, Upload, from_url, text_of_base64
from cm3serve.sending import Event
from cm3serve.tasks import (
    Growing,
    PictureTask,
    Workshop,
    ahead,
    in_order,
    in_turns,
    rows_of,
    task_of,
)

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model
    from cm3serve.documents import Naming
    from cm3serve.settings import Limits


Answer = dict[str, Any] | AsyncGenerator[Event, None]
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Asked:
    """A conversation up to the user's last message.

    Args:
        text: the user's last text.
        picture: the last picture of the conversation.
        earlier: (role, text) of the earlier turns of user and assistant that have text.
        spoken: (role, parts in order) of all turns of user and assistant up to that message.
    """

    text: str
    picture: Upload | None
    earlier: tuple[tuple[str, str], ...] = ()
    spoken: tuple[tuple[str, tuple[str | Upload, ...]], ...] = ()


def turn_of(messages: list[Any], limits: Limits) -> Asked:
    """Read the messages. System messages, and messages after the user's last one, are ignored."""
    picture, last, pictures = None, None, 0
    said: list[tuple[str, str]] = []
    spoken: list[tuple[str, tuple[str | Upload, ...]]] = []
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _wrong(name, f"must be an object whose role is one of {', '.join(ROLES)}")
        content = message.get("content")
        if message["role"] == "assistant":
            content = _written(content)
        parts = _parts(content, name, limits)
        words = "\n".join(part for part in parts if isinstance(part, str))
        uploads = [part for part in parts if not isinstance(part, str)]
        Field(name=f"{name}.content", sort="text", most=limits.prompt_characters, help="").read(
            words
        )
        pictures += len(uploads)
        if pictures > limits.pictures:
            raise _wrong(name, f"more than {limits.pictures} pictures were sent")
        picture = uploads[-1] if uploads else picture
        if message["role"] == "user":
            last = len(said)
        said.append((message["role"], words.strip()))
        spoken.append((message["role"], tuple(parts)))
    if last is None:
        raise _wrong("messages", "there is no user message")
    text = said[last][1]
    if not text and picture is None:
        raise _wrong("messages", "the user's last message is empty")
    spoken = [(role, parts) for role, parts in spoken[: last + 1] if role in SPEAKERS and parts]
    earlier = tuple((role, words) for role, words in said[:last] if role in SPEAKERS and words)
    return Asked(text, picture, earlier, tuple(spoken))


def _written(content: Any) -> Any:
    """A model's reply, as it is fed back. Its tokens may form NUL characters, which are refused in users'
    texts."""
    if isinstance(content, str):
        return content.replace("\0", "")
    if not isinstance(content, list):
        return content
    return [
        part | {"text": part["text"].replace("\0", "")}
        if isinstance(part, dict) and isinstance(part.get("text"), str)
        else part
        for part in content
    ]


def _parts(content: Any, name: str, limits: Limits) -> list[str | Upload]:
    """The texts and the pictures of a message, in order."""
    reader = Field(name=f"{name}.content", sort="text", most=limits.prompt_characters, help="")
    if content is None:
        return []
    if isinstance(content, str):
        return [reader.read(content)]
    if not isinstance(content, list):
        raise _wrong(f"{name}.content", "must be a string or a list of parts")
    parts: list[str | Upload] = []
    for number, part in enumerate(content):
        place = f"{name}.content[{number}]"
        sort = part.get("type") if isinstance(part, dict) else None
        if sort == "text":
            parts.append(reader.read(part.get("text")))
        elif sort == "image_url":
            url = part.get("image_url")
            address = url.get("url") if isinstance(url, dict) else url
            parts.append(from_url(address, f"{place}.image_url"))
        else:
            raise _wrong(place, 'must be {"type": "text"} or {"type": "image_url"}')
    return parts


def _wrong(place: str, cause: str) -> APIError:
    return invalid_value(place, cause, "messages")


def _answers_with_picture(values: Mapping[str, Any], turn: Asked) -> bool:
    """Whether to reply with a picture: as `modalities` says, otherwise for a message without a picture."""
    modalities = values.get("modalities")
    if modalities is None:
        return turn.picture is None
    if not modalities or any(one not in ("text", "image") for one in modalities):
        raise invalid_value("modalities", 'must be ["image"] or ["text"], or both')
    wanted = "image" in modalities
    if not wanted and turn.picture is None:
        raise invalid_value(
            "messages", "there is no picture, but this model only writes about pictures"
        )
    return wanted


async def completions(workshop: Workshop, intake: Intake) -> Answer:
    """Reply to the user's last message."""
    values = intake.values
    turn = await intake.aside(turn_of, values["messages"], workshop.limits)
    name = workshop.pool.name_of(values.get("model"))
    options = generation_options(values)
    given = await intake.aside(documents_of, values, workshop.limits)
    async with workshop.pool.use(name) as loaded:  # its facts
        model = loaded.model
        converses = in_turns(model)
        if converses:
            check_sampling(model, options)
    if converses:
        if given:
            raise invalid_value("documents", "a reply of this model has none")
        if not values.get("truncate"):
            _check_room(turn, model)
        turns = await _seen_turns(turn, workshop, intake, model, name)
        return await completions_in_turns(workshop, intake, name, turns, options)
    wants_picture = _answers_with_picture(values, turn)
    _add_sampling(options, values, "" if wants_picture else "text_")
    check_sampling(model, options)
    chat = _Chat(workshop, intake, name, model, turn, given, options)
    return await (chat.drawn() if wants_picture else chat.written())


@dataclass(eq=False)
class _Chat:
    """A request to a model that does not converse in turns.

    Args:
        workshop, intake: the workshop, and the request's intake.
        name, model: the model and its name.
        turn: the conversation.
        given: documents to prepend.
        options: options of `Model.generate` and similar methods.
    """

    workshop: Workshop
    intake: Intake
    name: str
    model: Model
    turn: Asked
    given: list[tuple[Upload, str]]
    options: dict[str, Any]

    async def drawn(self) -> Answer:
        """Pictures for a text or an instruction."""
        values, turn, model = self.intake.values, self.turn, self.model
        number, naming = values.get("n", 1), self.workshop.naming(self.name, values)
        self.workshop.weight_of(model, number, self.options)
        if values.get("truncate"):
            self.options["truncate"] = True
        elif turn.picture is not None:
            async with self.workshop.pool.use(self.name) as loaded:
                await loaded.call(check_length, model, "instruction", turn.text)
        pixels = await self._seen()
        read = await self.workshop.call(self.name, _tokens_read, model, turn)
        unknown = None
        if pixels is None:
            unknown = await self.workshop.unknown_words(self.name, [turn.text])
        height, width = model.image_size
        await self.intake.room_for_results(number * height * width)
        task = PictureTask(
            sort="draw" if pixels is None else "edit",
            text=turn.text,
            number=number,
            options=self.options,
            picture=pixels,
        )
        events = self.workshop.pictures(self.intake.client, self.name, task)
        pictures = await in_order(events, number)
        encoded = self.intake.encoded
        choices = [await encoded(_with_picture, model, one, task, naming) for one in pictures]
        if task.sort == "draw":
            choices = [one | {"unknown_words": unknown} for one in choices]
        written = number * model.components.serializer.num_codes
        return _reply(self.name, choices, values, _usage(read, written))

    async def written(self) -> Answer:
        """A caption of a picture, or an answer about it."""
        values, turn, model = self.intake.values, self.turn, self.model
        number, documents = values.get("n", 1), bool(values.get("return_documents"))
        naming = self.workshop.naming(self.name, values)
        most = values.get("max_completion_tokens", values.get("max_tokens"))
        options = self.options | ({} if most is None else {"max_tokens": most})
        cuts, client = bool(values.get("truncate")), self.intake.client
        task = task_of(model, "chat")
        question, own_task, num_read = await self.workshop.call(
            self.name, _question, model, task, turn, most, cuts
        )
        plain = not self.given and _is_plain(options, documents)
        streams = task is not None and question is not None and values.get("stream")
        if streams and number == 1 and plain:
            turns = await _seen_turns(turn, self.workshop, self.intake, model, self.name)
            options |= {"answer": "text", "truncate": cuts}
            return streamed_in_turns(self.workshop, self.intake, self.name, turns, options)
        pixels = await self._seen()
        assert pixels is not None
        options |= {**own_task, **self.options}
        read = {"turns_read": num_read, "turns_left_out": len(turn.earlier) - num_read}
        choices, texts = [], []
        for place in range(number):
            own = options if place == 0 else options | {"seed": options["seed"] + place}
            written, loaded = await self.workshop.text(client, self.name, pixels, question, own)
            texts.append(written.text)
            choices.append(_message(written.text, written, naming) | read)

        def usage() -> dict[str, int]:
            encode = model.components.text_tokenizer.encode
            asked = replace(turn, text=question or "")
            return _usage(_tokens_read(model, asked), sum(len(encode(one)) for one in texts))

        return _reply(self.name, choices, values, await loaded.call(usage))

    async def _seen(self) -> PixelArray | None:
        """The picture as the model sees it; the documents become an option."""
        size, most = self.model.image_size, self.workshop.limits.picture_pixels
        picture, given = self.turn.picture, self.given

        def read() -> tuple[PixelArray | None, list[tuple[PixelArray, str]]]:
            context = [(upload.seen(size, most), text) for upload, text in given]
            return None if picture is None else picture.seen(size, most), context

        own = [] if picture is None else [picture]
        pixels, context = await self.intake.decoded([*own, *(one for one, _ in given)], read)
        if context:
            self.options["context"] = context
        _forget(self.turn, self.intake)
        return pixels


def _forget(turn: Asked, intake: Intake) -> None:
    """Drop the bytes of a conversation's pictures, which are decoded or not needed."""
    for _, parts in turn.spoken:
        for part in parts:
            if isinstance(part, Upload):
                part.data = b""
    intake.forget_pictures()


def _is_plain(options: Mapping[str, Any], documents: bool) -> bool:
    """Whether to stream the text: a single answer, without documents."""
    return not documents and not any(name in options for name in NOT_HERE)


def _add_sampling(options: dict[str, Any], values: Mapping[str, Any], prefix: str) -> None:
    """The API's `temperature` and `top_p` as keys of the sampler."""
    own = {f"{prefix}{name}": values[name] for name in ("temperature", "top_p") if name in values}
    if own:
        options["sampling"] = own | options.get("sampling", {})


def _with_picture(model: Model, picture: Any, task: PictureTask, naming: Naming) -> dict[str, Any]:
    picture = naming.recognised(picture)
    sampling = task.options.get("sampling", {})
    facts = picture_facts(model, picture, sampler=task.options.get("sampler"), sampling=sampling)
    encoded = text_of_base64(Output().encode(picture.pixels, facts))
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
    return _message([part], picture, naming) | naming.of_picture(picture)


def _question(
    model: Model, task: str | None, turn: Asked, most: int | None, cuts: bool
) -> tuple[str | None, dict[str, Any], int]:
    """The question for the model, the option that names its task, and the number of earlier turns that it reads.

    Args:
        task: the model's conversation task; None: it was not tuned for one.
        most: maximum tokens of the answer; None: the model's own.
        cuts: leave out the oldest turns that don't fit; otherwise a conversation that is too long is
            refused.
    """
    if not turn.text:
        return None, {}, 0
    said = [*turn.earlier, ("user", turn.text)]
    question, own, number = model.question_read(
        task, said, max_tokens=most, truncate=cuts, place="messages"
    )
    return question, {} if own is None else {"task": own}, number


async def _seen_turns(
    asked: Asked, workshop: Workshop, intake: Intake, model: Model, name: str
) -> list[Turn]:
    """The conversation with its pictures as the model sees them. Pictures that the model drew get their original
    codes; turns without content are left out."""
    size, most = model.image_size, workshop.limits.picture_pixels

    def seen(part: str | Upload) -> Any:
        if isinstance(part, str):
            return part
        pixels = part.pixels(most)
        if pixels.shape[:2] != size:
            return fit(pixels, size)
        return workshop.drawn.find(name, pixels)

    def read() -> list[Turn]:
        found = []
        for role, parts in asked.spoken:
            kept = [part for part in parts if not isinstance(part, str) or part.strip()]
            if kept:
                said: Literal["user", "assistant"] = "user" if role == "user" else "assistant"
                found.append(Turn(said, tuple(map(seen, kept))))
        return found

    uploads = [part for _, parts in asked.spoken for part in parts if isinstance(part, Upload)]
    turns = await intake.decoded(uploads, read)
    _forget(asked, intake)
    return turns


def _check_room(turn: Asked, model: Model) -> None:
    """Raise `APIError` if the pictures of a conversation alone exceed the model's context."""
    number = sum(isinstance(part, Upload) for _, parts in turn.spoken for part in parts)
    each = model.components.serializer.num_codes
    context = model.components.context_length
    if number * each > context:
        raise _wrong(
            "messages",
            f"{number} pictures of {each} tokens each don't fit the decoder's context of {context}; leave "
            "some out, or the oldest turns (truncate)",
        )


def _message(content: Any, result: Any, naming: Naming) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None} | facts_of(result)
    if naming.with_pictures:
        message["documents"] = naming.documents(result.retrieved)
    return message


def _tokens_read(model: Model, turn: Asked) -> int:
    """The number of tokens of the text and the picture in the request."""
    codes = 0 if turn.picture is None else model.components.serializer.num_codes
    return len(model.components.text_tokenizer.encode(turn.text)) + codes


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _reply(
    name: str, messages: list[dict[str, Any]], values: Mapping[str, Any], usage: dict[str, int]
) -> Answer:
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": name,
    }
    if not values.get("stream"):
        choices = [
            {"index": place, "message": message, "finish_reason": "stop", "logprobs": None}
            for place, message in enumerate(messages)
        ]
        return head | {"object": "chat.completion", "choices": choices, "usage": usage}
    with_usage = values.get("stream_options", {}).get("include_usage") is True
    return _chunks(head, messages, usage if with_usage else None)


async def _chunks(
    head: dict[str, Any], messages: list[dict[str, Any]], usage: dict[str, int] | None
) -> AsyncGenerator[Event, None]:
    """The response in chunks: one for each message, then its end."""
    head = head | {"object": "chat.completion.chunk"}
    for place, message in enumerate(messages):
        for delta, reason in ((message, None), ({}, "stop")):
            choice = {"index": place, "delta": delta, "finish_reason": reason}
            yield Event("", head | {"choices": [choice]})
    if usage is not None:
        yield Event("", head | {"choices": [], "usage": usage})


#: Options for pictures that a reply does not use.
NOT_HERE = {
    "num_candidates": "candidates",
    "reranker": "reranker",
    "num_retrieved": "num_retrieved",
    "max_codes": "max_codes",
    "context": "documents",
}


def wanted(modalities: object) -> str:
    """The kind of reply, from the field `modalities`."""
    if modalities is None:
        return "any"
    if not isinstance(modalities, list) or not modalities:
        modalities = [None]
    if any(one not in ("text", "image") for one in modalities):
        raise invalid_value("modalities", 'must be ["image"] or ["text"], or both')
    return "any" if len(set(modalities)) == 2 else str(modalities[0])


async def completions_in_turns(
    workshop: Workshop,
    intake: Intake,
    name: str,
    turns: Sequence[Turn],
    options: dict[str, Any],
) -> dict[str, Any] | AsyncGenerator[Event, None]:
    """Reply to a conversation.

    Args:
        workshop: runs the tasks.
        intake: the request's intake.
        name: the model's name.
        turns: the turns of user and assistant; the last one is the user's.
        options: options of the sampler, and the seed.
    """
    values = intake.values
    for option, field in NOT_HERE.items():
        if option in options:
            raise invalid_value(field, "a reply of this model has none")
    answer = wanted(values.get("modalities"))
    most = values.get("max_completion_tokens", values.get("max_tokens"))
    options |= {"answer": answer, "truncate": bool(values.get("truncate"))}
    options |= {} if most is None else {"max_tokens": most}
    prefix = "" if answer == "image" else "text_"
    own = {f"{prefix}{key}": values[key] for key in ("temperature", "top_p") if key in values}
    options["sampling"] = own | options.get("sampling", {})
    number = values.get("n", 1)
    if values.get("stream") and number == 1:
        return streamed_in_turns(workshop, intake, name, turns, options)
    head = _head(name)
    choices, usage = [], {}
    for place in range(number):
        seeded = options | {"seed": candidate_seed(options["seed"], place)}
        reply: Reply | None = None
        async with aclosing(_events(workshop, intake, name, turns, seeded)) as events:
            async for loaded, event in events:
                if isinstance(event, ReplyReady):
                    reply = event.reply
                    for picture in reply.pictures:
                        workshop.drawn.remember(name, picture)
                    model = loaded.model
                    shown = await intake.encoded(_content, model, reply.parts, turns, seeded)
                    usage = await loaded.call(_usage_in_turns, model, turns, [reply])
        intake.forget_results()
        assert reply is not None
        message = {"role": "assistant", "content": shown, "refusal": None} | _facts(reply)
        choices.append(
            {"index": place, "message": message, "finish_reason": reply.finish, "logprobs": None}
        )
    return head | {"object": "chat.completion", "choices": choices, "usage": usage}


async def _events(
    workshop: Workshop, intake: Intake, name: str, turns: Sequence[Turn], options: dict[str, Any]
) -> AsyncGenerator[tuple[AsyncModel, Any], None]:
    """The model, and the events of a reply, once it is the request's turn. The events are read `ahead`."""
    await intake.room_for_results(await _most_pixels(workshop, name))

    async def made() -> AsyncGenerator[tuple[AsyncModel, Any], None]:
        async with workshop.turn(intake.client, name, 1, {"num_candidates": 1}) as loaded:
            async with aclosing(loaded.chat_events(turns, **options)) as events:
                async for event in events:
                    yield loaded, event
            workshop.on_finished("chat")

    async with aclosing(ahead(made())) as events:
        async for event in events:
            yield event


async def _most_pixels(workshop: Workshop, name: str) -> int:
    """The maximum number of pictures in a reply, by the model's context."""
    async with workshop.pool.use(name) as loaded:
        parts, (height, width) = loaded.model.components, loaded.model.image_size
    number = max(1, parts.context_length // parts.serializer.num_codes)
    return number * height * width


def _head(name: str) -> dict[str, Any]:
    """The common fields of a model's responses."""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": name,
    }


async def streamed_in_turns(
    workshop: Workshop,
    intake: Intake,
    name: str,
    turns: Sequence[Turn],
    options: dict[str, Any],
) -> AsyncGenerator[Event, None]:
    """A reply in chunks: its texts in pieces as they are generated, its pictures when they are finished, and
    before that partial pictures if `partial_images` asks for them.

    For the arguments, see `completions_in_turns`; `options` are those of `Model.chat`.
    """
    head, values = _head(name) | {"object": "chat.completion.chunk"}, intake.values
    with_usage = values.get("stream_options", {}).get("include_usage") is True
    growing = Growing(values.get("partial_images", 0))

    def chunk(delta: dict[str, Any], reason: str | None = None) -> Event:
        return Event(
            "", head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        )

    role: dict[str, Any] = {"role": "assistant"}
    async with aclosing(_events(workshop, intake, name, turns, options)) as events:
        async for loaded, event in events:
            if isinstance(event, TextGrown):
                yield chunk(role | {"content": event.text})
                role = {}
            elif isinstance(event, PictureGrown) and growing.is_due(event.segment, event.codes):
                rows, all_rows = rows_of(event.codes)
                pixels = await loaded.preview(event.codes)
                url = await intake.encoded(lambda given: _png(Output().preview(given)), pixels)
                partial = {
                    "image_url": {"url": url},
                    "rows": rows,
                    "all_rows": all_rows,
                }
                yield chunk(role | {"partial_image": partial})
                role = {}
            elif isinstance(event, ReplyPart) and isinstance(event.part, ReplyPicture):
                workshop.drawn.remember(name, event.part)
                parts = [event.part]
                content = await intake.encoded(_content, loaded.model, parts, turns, options)
                yield chunk(role | {"content": content})
                role = {}
            elif isinstance(event, ReplyReady):
                yield chunk(_facts(event.reply), event.reply.finish)
                if with_usage:
                    usage = await loaded.call(_usage_in_turns, loaded.model, turns, [event.reply])
                    yield Event("", head | {"choices": [], "usage": usage})


def _content(
    model: Model,
    parts: Sequence[str | ReplyPicture],
    turns: Sequence[Turn],
    options: Mapping[str, Any],
) -> str | list[dict[str, Any]]:
    """The content of a message: a plain text, or a list of parts."""
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    found: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            found.append({"type": "text", "text": part})
            continue
        told = facts_of_reply(
            model,
            part,
            turns[-1].text,
            sampler=options.get("sampler"),
            sampling=options.get("sampling", {}),
        )
        found.append(
            {"type": "image_url", "image_url": {"url": _png(Output().encode(part.pixels, told))}}
        )
    return found


def _png(content: bytes) -> str:
    """A picture's bytes as a data: URL."""
    return f"data:image/png;base64,{text_of_base64(content)}"


def _facts(reply: Reply) -> dict[str, Any]:
    return {
        "seed": reply.seed,
        "turns_read": reply.turns_read,
        "turns_left_out": reply.turns_left_out,
    }


def _usage_in_turns(
    model: Model, turns: Sequence[Turn], replies: Sequence[Reply]
) -> dict[str, int]:
    """The number of text tokens and image codes of the request and of the reply."""
    tokenizer, codes = model.components.text_tokenizer, model.components.serializer.num_codes

    def count(parts: Sequence[Any]) -> int:
        return sum(len(tokenizer.encode(one)) if isinstance(one, str) else codes for one in parts)

    kept = turns[len(turns) - 1 - replies[0].turns_read :]
    read = sum(count(turn.parts) for turn in kept)
    written = sum(count(reply.parts) for reply in replies)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
