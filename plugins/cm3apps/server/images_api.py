"""`/v1/images/generations` and `/v1/images/edits`: pictures, at once or as they grow."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cm3apps.server.abilities import task_of
from cm3apps.server.conditions import condition_of
from cm3apps.server.errors import APIError, invalid_value
from cm3apps.server.pictures import (
    Upload,
    mask_of,
    pictures_of,
    text_of_base64,
)
from cm3apps.server.sampling_options import check_sampling, generation_options, with_quality
from cm3apps.server.streaming import Event
from cm3apps.server.tasks import Drawn, Partial, PictureTask, Workshop, aside, in_order, transparent
from cm3apps.server.wish import Wish
from cm3core.attribution import svg
from cm3core.model.facts import facts_of as picture_facts
from cm3core.model.results import GeneratedImage, InfilledImage

if TYPE_CHECKING:
    from cm3apps.server.documents import Naming
    from cm3core.attribution import PictureFacts
    from cm3core.document import BoolArray, PixelArray
    from cm3core.model.model import Model

Answer = dict[str, Any] | AsyncGenerator[Event, None]


async def generations(workshop: Workshop, client: str, values: Mapping[str, Any]) -> Answer:
    """Draw pictures for a prompt, and by a condition if there is one."""
    condition = await aside(condition_of, values, workshop.limits)
    sort, record = ("draw", {}) if condition is None else condition
    return await _answer(
        workshop, client, values, sort, None, None, "image_generation", record=record
    )


async def edits(
    workshop: Workshop,
    client: str,
    values: Mapping[str, Any],
    uploads: Mapping[str, Sequence[Upload]],
) -> Answer:
    """Fill the masked part of a picture, or edit it by instruction."""
    found = pictures_of(values, uploads)
    if len(found) != 1:
        raise APIError(
            400,
            f"image: {len(found)} pictures were sent, this model edits exactly one",
            param="image",
            code="missing_required_parameter" if not found else "invalid_value",
        )
    most = workshop.limits.picture_pixels
    pixels = await aside(found[0].pixels, most)
    mask = await aside(_mask, mask_of(values, uploads), found[0], pixels, most)
    sort = "edit" if mask is None else "fill"
    if sort == "edit" and "prompt" not in values:
        raise APIError(
            400,
            "prompt: is missing: an instruction, since there is no mask",
            param="prompt",
            code="missing_required_parameter",
        )
    return await _answer(workshop, client, values, sort, pixels, mask, "image_edit")


def _mask(mask: Upload | None, picture: Upload, pixels: PixelArray, most: int) -> BoolArray | None:
    """What is to be filled. A picture that is transparent somewhere is its own mask."""
    alpha = (picture if mask is None else mask).alpha(most)
    if mask is None:
        return None if alpha is None or not (alpha == 0).any() else transparent(alpha)
    if alpha is None:
        raise APIError(
            400,
            "mask: has no transparency (alpha); what is fully transparent there is filled",
            param="mask",
            code="invalid_image",
        )
    if alpha.shape != pixels.shape[:2]:
        raise APIError(
            400,
            f"mask: is {alpha.shape[1]}x{alpha.shape[0]}, the picture {pixels.shape[1]}x"
            f"{pixels.shape[0]}; make them equal",
            param="mask",
            code="invalid_image",
        )
    if not (alpha == 0).any():
        raise APIError(
            400,
            "mask: is nowhere fully transparent, so there is nothing to fill",
            param="mask",
            code="invalid_image",
        )
    return transparent(alpha)


async def _answer(
    workshop: Workshop,
    client: str,
    values: Mapping[str, Any],
    sort: Any,
    pixels: PixelArray | None,
    mask: BoolArray | None,
    event: str,
    record: Mapping[str, Any] | None = None,
) -> Answer:
    name = workshop.pool.name_of(values.get("model"))
    number = values.get("n", 1)
    if values.get("partial_images") and not values.get("stream"):
        raise invalid_value("partial_images", "needs stream")
    options = await aside(generation_options, values, workshop.limits)
    async with workshop.pool.use(name) as loaded:  # its facts
        model = loaded.model
        check_sampling(model, options)
        wish = Wish.of(values, model, workshop.limits)
    options = with_quality(options, wish.quality, model, number, workshop.limits)
    task = PictureTask(
        sort=sort,
        text=values.get("prompt"),
        number=number,
        options=options | ({"truncate": True} if values.get("truncate") else {}),
        partials=values.get("partial_images", 0),
        picture=pixels,
        mask=mask,
        upscale=wish.upscale and sort != "fill",
        record=record or {},
    )
    # an instruction has other words than captions
    texts = [] if sort == "edit" else [task.text]
    unknown = await workshop.unknown_words(name, texts)
    events = workshop.pictures(client, name, task)
    reply = Reply(model, task, wish, event, workshop.naming(name, values))
    reply.unknown_words = unknown
    if values.get("stream"):
        return reply.events(events)
    pictures = await in_order(events, number)
    return {
        "created": int(time.time()),
        "data": [await aside(reply.item, one) for one in pictures],
        "background": wish.background,
        "output_format": wish.output.format,
        "quality": wish.quality,
        "size": wish.size,
        "unknown_words": unknown,
        "usage": reply.usage(number),
    }


class Reply:
    """Pictures as the API returns them.

    Args:
        model, task, wish: what draws, what is asked for, how it is returned.
        event: the name that its events begin with.
        naming: names the documents that were in front.
    """

    def __init__(
        self,
        model: Model,
        task: PictureTask,
        wish: Wish,
        event: str,
        naming: Naming,
    ) -> None:
        self.model, self.task, self.wish, self.event = model, task, wish, event
        self.naming = naming
        #: See `Workshop.unknown_words`.
        self.unknown_words: Mapping[str, str | None] | None = None

    def item(self, picture: GeneratedImage | InfilledImage) -> dict[str, Any]:
        """One of `data`."""
        picture = self.naming.recognised(picture)
        large = getattr(picture, "upscaled", None)
        pixels = picture.pixels if large is None else large
        encoded = text_of_base64(self.wish.output.encode(pixels, self.facts(picture)))
        item: dict[str, Any] = (
            {"url": f"data:{self.wish.output.media_type};base64,{encoded}"}
            if self.wish.as_url
            else {"b64_json": encoded}
        )
        item |= facts_of(picture) | self.naming.of_picture(picture)
        if self.wish.with_svg:
            item["svg"] = self.svg(picture)
        if self.task.record:  # what `Model.do` takes
            item["task"] = task_of(self.model, self.task.sort)
            texts = {name: one for name, one in self.task.record.items() if isinstance(one, str)}
            item["record"] = {"caption": self.task.text, **texts}
        if self.task.sort == "fill" and self.task.text is None:
            item["revised_prompt"] = picture.text  # type: ignore[union-attr]  # what is filled has a text
        return item

    def facts(self, picture: GeneratedImage | InfilledImage) -> PictureFacts:
        """What its file carries."""
        options = self.task.options
        sampling = options.get("sampling", {})
        return picture_facts(self.model, picture, sampler=options.get("sampler"), sampling=sampling)

    def svg(self, picture: GeneratedImage | InfilledImage) -> str:
        """The picture traced as curves, with what its file carries."""
        from cm3core.cli._tracing import svg_of, svg_of_image

        is_drawn = isinstance(picture, GeneratedImage)
        traced = svg_of_image(picture) if is_drawn else svg_of(picture.pixels)
        return svg(traced, self.facts(picture))

    async def events(
        self, events: AsyncGenerator[Partial | Drawn, None]
    ) -> AsyncGenerator[Event, None]:
        """The server-sent events of the task."""
        async with aclosing(events):
            async for one in events:
                if isinstance(one, Partial):
                    yield await self.partial(one)
                else:
                    item = await aside(self.item, one.result)
                    body = self.head(one.picture) | item | {"usage": self.usage(1)}
                    yield Event(f"{self.event}.completed", body)

    def head(self, place: int) -> dict[str, Any]:
        """What every event of a picture says."""
        return {
            "created_at": int(time.time()),
            "size": self.wish.size,
            "quality": self.wish.quality,
            "background": self.wish.background,
            "output_format": self.wish.output.format,
            "index": place,
            "unknown_words": self.unknown_words,
        }

    async def partial(self, one: Partial) -> Event:
        """The event of a growing picture."""
        encoded = await aside(self.wish.output.preview, one.pixels)
        grown = {
            "b64_json": text_of_base64(encoded),
            "partial_image_index": one.number,
            "rows": one.rows,
            "all_rows": one.all_rows,
        }
        return Event(f"{self.event}.partial_image", self.head(one.picture) | grown)

    def usage(self, number: int) -> dict[str, Any]:
        """Tokens of the prompt and of what was drawn, candidates included. A filled picture counts
        as a whole."""
        parts = self.model.components
        texts = self.task.texts or ([] if self.task.text is None else [self.task.text])
        most = self.model.recipe.data.max_text_tokens  # a longer one is refused, or cut
        text = sum(min(len(parts.text_tokenizer.encode(one)), most) for one in texts)
        codes = parts.serializer.num_codes
        has_picture = self.task.picture is not None or "condition" in self.task.record
        own = codes if has_picture else 0
        each = self.task.options.get("num_candidates", self.model.recipe.generate.num_candidates)
        drawn = number * each * codes
        return {
            "input_tokens": text + own,
            "input_tokens_details": {"text_tokens": text, "image_tokens": own},
            "output_tokens": drawn,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            "total_tokens": text + own + drawn,
        }


def facts_of(result: Any) -> dict[str, Any]:
    """What repeats a result, and how it was chosen."""
    facts: dict[str, Any] = {"seed": result.seed}
    if result.choice is not None:
        facts["choice"] = {
            "index": result.choice.index,
            "scores": list(result.choice.scores),
            "measure": result.choice.measure,
        }
    return facts
