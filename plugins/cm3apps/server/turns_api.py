"""`/v1/chat/completions` of models that converse in their layout's turns: pictures on both sides, texts as
they are written."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cm3apps.server.errors import invalid_value
from cm3apps.server.pictures import Output, text_of_base64
from cm3apps.server.streaming import Event
from cm3apps.server.tasks import Growing, Workshop, ahead, rows_of
from cm3run.generation.engine import PictureGrown, TextGrown, candidate_seed
from cm3run.model.facts import facts_of_reply
from cm3run.model.turns import Reply, ReplyPart, ReplyPicture, ReplyReady, Turn

if TYPE_CHECKING:
    from cm3apps.server.intake import Intake
    from cm3run.model.aio import AsyncModel
    from cm3run.model.model import Model

#: Options of pictures that a reply has no use for.
NOT_HERE = {
    "num_candidates": "candidates",
    "reranker": "reranker",
    "num_retrieved": "num_retrieved",
    "context": "documents",
}


def wanted(modalities: object) -> str:
    """What is to be replied, of the field `modalities`."""
    if modalities is None:
        return "any"
    if not isinstance(modalities, list) or not modalities:
        modalities = [None]
    if any(one not in ("text", "image") for one in modalities):
        raise invalid_value("modalities", 'must be ["image"] or ["text"], or both')
    return "any" if len(set(modalities)) == 2 else str(modalities[0])


async def completions(
    workshop: Workshop,
    intake: Intake,
    name: str,
    turns: Sequence[Turn],
    options: dict[str, Any],
) -> dict[str, Any] | AsyncGenerator[Event, None]:
    """Reply to a conversation.

    Args:
        workshop: does the work.
        intake: of the request.
        name: of the model.
        turns: of user and assistant, the last one the user's.
        options: of the sampler, and the seed.
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
        return streamed(workshop, intake, name, turns, options)
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
                    usage = await loaded.call(_usage, model, turns, [reply])
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
    """The model, and the events of a reply, when it is the request's turn. They are read `ahead`."""
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
    """Of all pictures that fit the model's context: so many may be in a reply."""
    async with workshop.pool.use(name) as loaded:
        parts, (height, width) = loaded.model.components, loaded.model.image_size
    number = max(1, parts.decoder.context_length // parts.serializer.num_codes)
    return number * height * width


def _head(name: str) -> dict[str, Any]:
    """What every answer of a model begins with."""
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": name,
    }


async def streamed(
    workshop: Workshop,
    intake: Intake,
    name: str,
    turns: Sequence[Turn],
    options: dict[str, Any],
) -> AsyncGenerator[Event, None]:
    """A reply in chunks: pieces of its texts as they are written, its pictures when they are finished, and
    before that as they grow, if `partial_images` asks for it.

    Args: see `completions`; `options` are those of `Model.chat`.
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
                    usage = await loaded.call(_usage, loaded.model, turns, [event.reply])
                    yield Event("", head | {"choices": [], "usage": usage})


def _content(
    model: Model,
    parts: Sequence[str | ReplyPicture],
    turns: Sequence[Turn],
    options: Mapping[str, Any],
) -> str | list[dict[str, Any]]:
    """A text alone as such, anything else as parts."""
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


def _usage(model: Model, turns: Sequence[Turn], replies: Sequence[Reply]) -> dict[str, int]:
    """Tokens of the texts and the codes of the pictures that were read, and of what came back."""
    tokenizer, codes = model.components.text_tokenizer, model.components.serializer.num_codes

    def count(parts: Sequence[Any]) -> int:
        return sum(len(tokenizer.encode(one)) if isinstance(one, str) else codes for one in parts)

    kept = turns[len(turns) - 1 - replies[0].turns_read :]
    read = sum(count(turn.parts) for turn in kept)
    written = sum(count(reply.parts) for reply in replies)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
