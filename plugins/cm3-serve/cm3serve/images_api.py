"""`/v1/images/generations` and `/v1/images/edits`: the generation and encoding of pictures, with partial pictures in
streams. `/v1/conditions`: the structure of an uploaded picture, for a model to follow.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cm3core.images import fit
from cm3run.attribution import svg
from cm3run.model.async_engine import in_thread
from cm3run.model.facts import facts_of as picture_facts
from cm3run.model.facts import original_of
from cm3run.model.loaded import check_length
from cm3run.model.results import GeneratedImage, InfilledImage
from cm3serve.conditions import condition_of, smaller
from cm3serve.errors import APIError, invalid_value
from cm3serve.field_tables import HIGH, HIGH_QUALITY
from cm3serve.fields import Field, shown
from cm3serve.intake import Intake
from cm3serve.pictures import (
    Output,
    Upload,
    from_url,
    mask_of,
    pictures_of,
    text_of_base64,
)
from cm3serve.sending import Event
from cm3serve.settings import Limits
from cm3serve.tasks import (
    Drawn,
    Growing,
    Partial,
    PictureTask,
    Workshop,
    in_order,
    task_of,
    transparent,
)

if TYPE_CHECKING:
    from cm3core.document import BoolArray, PixelArray
    from cm3run.attribution import PictureFacts
    from cm3run.model.model import Model
    from cm3serve.documents import Naming


Answer = dict[str, Any] | AsyncGenerator[Event, None]


async def generations(workshop: Workshop, intake: Intake) -> Answer:
    """Draw pictures for a prompt and, if given, a condition."""
    sort: str = "draw"
    record: dict[str, Any] = {}
    if intake.values.get("boxes") or intake.values.get("condition") is not None:
        sort, record = await intake.aside(condition_of, intake.values, workshop.limits)
    asked = await Asked.of(workshop, intake, sort)
    task = await asked.task(record=record)
    return await _answer(workshop, asked, task, "image_generation")


async def edits(workshop: Workshop, intake: Intake) -> Answer:
    """Fill the masked part of a picture, or edit it by instruction."""
    found = await intake.aside(pictures_of, intake.values, intake.uploads)
    if len(found) != 1:
        raise APIError(
            400,
            f"image: {len(found)} pictures were sent, this model edits exactly one",
            param="image",
            code="missing_required_parameter" if not found else "invalid_value",
        )
    mask = await intake.aside(mask_of, intake.values, intake.uploads)
    asked = await Asked.of(workshop, intake, "edit" if mask is None else "fill")
    task = await asked.task(picture=found[0], mask=mask)
    return await _answer(workshop, asked, task, "image_edit")


def _mask(mask: Upload | None, picture: Upload, pixels: PixelArray, most: int) -> BoolArray | None:
    """The mask of the part to fill. A picture with transparency is its own mask."""
    alpha = (picture if mask is None else mask).alpha(most)
    if mask is None:
        return None if alpha is None or not (alpha == 0).any() else transparent(alpha)
    if alpha is None:
        raise APIError(
            400,
            "mask: has no transparency (alpha); its fully transparent pixels are filled",
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
            "mask: has no fully transparent pixel, so there is nothing to fill",
            param="mask",
            code="invalid_image",
        )
    return transparent(alpha)


@dataclass(eq=False)
class Asked:
    """A request, with its pictures not yet decoded.

    Args:
        workshop: runs the tasks.
        intake: the request's intake.
        name: the model's name.
        model: the model.
        sort: the sort of task; "edit" becomes "fill" if the picture turns out to have transparency.
        number: results per prompt.
        options: options of `Model.generate` and similar methods.
        wish: the form of the results.
        documents: pictures and texts to prepend.
        texts: several prompts.
    """

    workshop: Workshop
    intake: Intake
    name: str
    model: Model
    sort: Any
    number: int
    options: dict[str, Any]
    wish: Wish
    documents: list[tuple[Upload, str]]
    texts: tuple[str, ...] = ()

    @classmethod
    async def of(
        cls, workshop: Workshop, intake: Intake, sort: str, *, texts: Sequence[str] = ()
    ) -> Asked:
        """Read a request's fields; raises `APIError` for invalid ones, before any picture is decoded."""
        values, limits = intake.values, workshop.limits
        name = workshop.pool.name_of(values.get("model"))
        number = values.get("n", 1)
        if values.get("partial_images") and not values.get("stream"):
            raise invalid_value("partial_images", "needs stream")
        options = generation_options(values)
        documents = await intake.aside(documents_of, values, limits)
        async with workshop.pool.use(name) as loaded:  # its facts
            model = loaded.model
            check_sampling(model, options)
            if "draw" in values and sort == "draw":
                options["draw"] = values["draw"]
            wish = Wish.of(values, model, limits)
        options = with_quality(options, wish.quality, model, number, limits)
        workshop.weight_of(model, number * max(1, len(texts)), options)
        asked = cls(
            workshop, intake, name, model, sort, number, options, wish, documents, tuple(texts)
        )
        if values.get("truncate"):
            options["truncate"] = True
        return asked

    def check_texts(self) -> None:
        """Raise `GenerationError` for a text that is too long for the model. The model checks this too, but only
        after all pictures are decoded."""
        if self.options.get("truncate"):
            return
        place = {"draw": "prompt", "edit": "instruction", "fill": "text"}.get(self.sort)
        prompt = self.intake.values.get("prompt")
        texts = [*self.texts, *([] if prompt is None else [prompt])] if place else []
        for text in texts:
            check_length(self.model, place or "", text)
        for number, (_, text) in enumerate(self.documents):
            check_length(self.model, f"context {number}, text", text)

    async def task(
        self,
        *,
        record: Mapping[str, Any] | None = None,
        picture: Upload | None = None,
        mask: Upload | None = None,
    ) -> PictureTask:
        """The task with all pictures decoded; pictures that the model only reads have its own size.

        Args:
            record: the record of one of the model's tasks, see `condition_of`.
            picture: the picture to edit or fill.
            mask: the mask of the part to fill.
        """
        intake, limits = self.intake, self.workshop.limits
        most, size = limits.picture_pixels, self.model.image_size
        given, parts = [upload for upload, _ in self.documents], dict(record or {})
        given += [one for one in parts.values() if isinstance(one, Upload)]
        own = [one for one in (picture, mask) if one is not None]
        if own or given:
            async with self.workshop.pool.use(self.name) as loaded:
                await loaded.call(self.check_texts)
        may_fill = picture is not None and await intake.aside(self._may_fill, picture, mask)

        def read() -> tuple[Any, ...]:
            context = [(upload.seen(size, most), text) for upload, text in self.documents]
            seen = {
                key: one.seen(size, most) if isinstance(one, Upload) else one
                for key, one in parts.items()
            }
            return context, seen, *self._pixels(picture, mask, may_fill=may_fill)

        results = self.number if may_fill else 0
        context, parts, pixels, marked = await intake.decoded([*own, *given], read, results=results)
        if context:
            self.options["context"] = context
        if marked is None:
            intake.forget_results()
        sort: Any = "fill" if marked is not None else self.sort
        if sort == "edit" and "prompt" not in intake.values:
            raise APIError(
                400,
                "prompt: is missing; without a mask, an instruction is needed",
                param="prompt",
                code="missing_required_parameter",
            )
        intake.forget_pictures()
        return PictureTask(
            sort=sort,
            text=intake.values.get("prompt"),
            texts=self.texts,
            number=self.number,
            options=self.options,
            partials=intake.values.get("partial_images", 0),
            picture=pixels,
            mask=marked,
            upscale=self.wish.upscale and sort != "fill",
            record=parts,
        )

    def _pixels(
        self, picture: Upload | None, mask: Upload | None, *, may_fill: bool
    ) -> tuple[PixelArray | None, BoolArray | None]:
        """The pixels of the picture, in its own size if it is to be filled, and the mask."""
        most = self.workshop.limits.picture_pixels
        if picture is None:
            return None, None
        pixels = picture.pixels(most)
        marked = _mask(mask, picture, pixels, most) if may_fill else None
        return pixels if marked is not None else fit(pixels, self.model.image_size), marked

    def _may_fill(self, picture: Upload, mask: Upload | None) -> bool:
        """Whether the picture will or may be filled, and so returned in its own size."""
        limits = self.workshop.limits
        width, height = picture.size(limits.picture_pixels)
        if mask is None and not picture.has_alpha(limits.picture_pixels):
            return False
        if max(width, height) > limits.side:
            raise APIError(
                400,
                f"image: is {width}x{height}; a filled picture keeps its size, and no side may "
                f"exceed {limits.side}. Next: make it smaller",
                param="image",
                code="invalid_image",
            )
        return True


async def _answer(workshop: Workshop, asked: Asked, task: PictureTask, event: str) -> Answer:
    intake, wish, number = asked.intake, asked.wish, asked.number
    # instructions use other words than captions
    texts = [] if task.sort == "edit" else [task.text]
    unknown = await workshop.unknown_words(asked.name, texts)
    reply = await Reply.of(workshop, asked, task, event)
    reply.unknown_words = unknown
    events = workshop.pictures(intake.client, asked.name, task)
    if intake.values.get("stream"):
        return reply.events(events)
    pictures = await in_order(events, number)
    return {
        "created": int(time.time()),
        "data": [await intake.encoded(reply.item, one) for one in pictures],
        "background": wish.background,
        "output_format": wish.output.format,
        "quality": wish.quality,
        "size": wish.size,
        "unknown_words": unknown,
        "usage": reply.usage(pictures),
    }


def _pixels_of(model: Model, task: PictureTask) -> int:
    """Pixels of each result, until it is encoded."""
    if task.sort == "fill" and task.picture is not None:  # as large as the filled picture
        return int(task.picture.shape[0] * task.picture.shape[1])
    height, width = model.image_size
    enlarger = model.components.upscaler if task.upscale else None
    scale: int = 0 if enlarger is None else enlarger.scale
    return height * width * (1 + scale * scale)


class Reply:
    """Pictures in the API's format.

    Args:
        asked: the request.
        task: the task.
        event: the first part of the names of its events.
        naming: describes the prepended documents.
        text_tokens: the number of tokens of the prompts.
    """

    def __init__(
        self, asked: Asked, task: PictureTask, event: str, naming: Naming, text_tokens: int
    ) -> None:
        self.model, self.wish, self.encoded = asked.model, asked.wish, asked.intake.encoded
        self.task, self.event = task, event
        self.naming, self.text_tokens = naming, text_tokens
        #: See `Workshop.unknown_words`.
        self.unknown_words: Mapping[str, str | None] | None = None

    @classmethod
    async def of(cls, workshop: Workshop, asked: Asked, task: PictureTask, event: str) -> Reply:
        """The reply to a request, once there is room for its pictures."""
        model, texts = asked.model, task.texts or ([] if task.text is None else [task.text])

        def count() -> tuple[int, int]:
            most = model.recipe.data.max_text_tokens  # longer prompts are refused or cut
            encode = model.components.text_tokenizer.encode
            return sum(min(len(encode(one)), most) for one in texts), _pixels_of(model, task)

        tokens, pixels = await workshop.call(asked.name, count)
        await asked.intake.room_for_results(task.results * pixels)
        naming = workshop.naming(asked.name, asked.intake.values)
        return cls(asked, task, event, naming, tokens)

    def item(self, picture: GeneratedImage | InfilledImage) -> dict[str, Any]:
        """An item of `data`."""
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
        if self.task.record:  # the record for `Model.do`
            item["task"] = task_of(self.model, self.task.sort)
            texts = {name: one for name, one in self.task.record.items() if isinstance(one, str)}
            item["record"] = {"caption": self.task.text, **texts}
        if self.task.sort == "fill" and self.task.text is None:
            item["revised_prompt"] = picture.text  # type: ignore[union-attr]  # what is filled has a text
        return item

    def facts(self, picture: GeneratedImage | InfilledImage) -> PictureFacts:
        """The metadata of the picture's file."""
        options = self.task.options
        sampling = options.get("sampling", {})
        return picture_facts(self.model, picture, sampler=options.get("sampler"), sampling=sampling)

    def svg(self, picture: GeneratedImage | InfilledImage) -> str:
        """The picture as an SVG, traced unless the model wrote it as a drawing, with the metadata of its file; the
        original of a picture that was found."""
        from cm3run.model.tracing import svg_of, svg_of_image

        components = self.model.components
        if isinstance(picture, GeneratedImage):
            if picture.original is not None and picture.original.suffix == ".svg":
                [(_, content)] = original_of(picture)
                return content.decode()
            drawn = svg_of_image(picture, components.finisher, components.image_tokenizer)
            return svg(drawn, self.facts(picture))
        traced = svg_of(picture.pixels, finisher=components.finisher)
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
                    item = await self.encoded(self.item, one.result)
                    body = self.head(one.picture) | item | {"usage": self.usage([one.result])}
                    yield Event(f"{self.event}.completed", body)

    def head(self, place: int) -> dict[str, Any]:
        """The common fields of a picture's events."""
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
        """The event of a partial picture."""
        encoded = await self.encoded(self._preview, one.pixels)
        grown = {
            "b64_json": encoded,
            "partial_image_index": one.number,
            "rows": one.rows,
            "all_rows": one.all_rows,
        }
        optional = not Growing(self.task.partials).all_are_sent
        return Event(f"{self.event}.partial_image", self.head(one.picture) | grown, optional)

    def _preview(self, pixels: PixelArray) -> str:
        return text_of_base64(self.wish.output.preview(pixels))

    def usage(self, pictures: Sequence[GeneratedImage | InfilledImage]) -> dict[str, Any]:
        """Tokens of the prompt and of the generated pictures, including candidates. Inpainting counts as a full
        picture, a found one as none."""
        number = sum(getattr(one, "original", None) is None for one in pictures)
        text, codes = self.text_tokens, self.model.components.serializer.num_codes
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
    """The facts that repeat a result, and how it was chosen."""
    facts: dict[str, Any] = {"seed": result.seed}
    if result.choice is not None:
        facts["choice"] = {
            "index": result.choice.index,
            "scores": list(result.choice.scores),
            "measure": result.choice.measure,
            "copies": list(result.choice.copies),
        }
    return facts


_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The requested form of a request's pictures, and the response's fields about it."""

    output: Output
    upscale: bool
    size: str
    quality: str
    background: str
    as_url: bool
    with_svg: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], model: Model, limits: Limits) -> Wish:
        """Read the fields; raises `APIError` for a size that the model doesn't support."""
        format = values.get("output_format", "png")
        background = values.get("background", "auto")
        if background == "transparent" and format == "jpeg":
            raise invalid_value("background", "JPEG can't be transparent; use png or webp")
        height, width = model.image_size
        size = _size(values.get("size", "auto"), (width, height), limits)
        larger = size is not None and size[0] > width
        return cls(
            output=Output(
                format=format,
                quality=values.get("output_compression", 100),
                size=size,
                transparent=background == "transparent",
            ),
            upscale=larger and "upscaler" in model.recipe.component_names,
            size="{}x{}".format(*(size or (width, height))),
            quality=values.get("quality", "auto"),
            background=background,
            as_url=values.get("response_format") == "url",
            with_svg=_with_svg(values),
        )


def _with_svg(values: Mapping[str, Any]) -> bool:
    asked = bool(values.get("return_svg", False))
    if asked and not can_trace():
        raise invalid_value(
            "return_svg",
            "needs the package vtracer on the server. Next: pip install 'cm3leon[svg]' there, or "
            "leave it out",
        )
    return asked


def can_trace() -> bool:
    """Whether pictures can be traced here."""
    return find_spec("vtracer") is not None


def _size(text: str, own: tuple[int, int], limits: Limits) -> tuple[int, int] | None:
    """The requested size; None: the model's own."""
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    fits = match is not None and max(width, height) <= limits.side
    if not fits or abs(width * own[1] - height * own[0]) >= max(own):
        raise invalid_value(
            "size",
            f"is {shown(text)}, must be auto, {own[0]}x{own[1]} (the model's own), or another "
            f"size in this aspect ratio with sides of at most {limits.side}",
        )
    return width, height


#: Seeds for requests without one; small, so that people can repeat them.
MOST_RANDOM = 2**31


def generation_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Model.generate` and similar methods, without the documents."""
    sampling = dict(values.get("sampling", {}))
    for name in ("guidance_scale", "negative_prompt"):
        if name in values:
            if name in sampling:
                raise invalid_value("sampling", f"{name} is also given as a field of its own")
            sampling[name] = values[name]
    options: dict[str, Any] = {"seed": values.get("seed", secrets.randbelow(MOST_RANDOM))}
    for name, option in (
        ("sampler", "sampler"),
        ("candidates", "num_candidates"),
        ("reranker", "reranker"),
        ("num_retrieved", "num_retrieved"),
        ("max_codes", "max_codes"),
    ):
        if name in values:
            options[option] = values[name]
    if sampling:
        options["sampling"] = sampling
    return options


def documents_of(values: Mapping[str, Any], limits: Limits) -> list[tuple[Upload, str]]:
    """The pictures and texts of `documents`, which are prepended to the prompt."""
    return [
        _document(one, f"documents[{place}]", limits)
        for place, one in enumerate(values.get("documents", ()))
    ]


def _document(value: Any, place: str, limits: Limits) -> tuple[Upload, str]:
    if not isinstance(value, dict) or set(value) != {"image_url", "text"}:
        raise invalid_value(place, 'must be {"image_url": "data:...", "text": "..."}', "documents")
    text = Field(name=f"{place}.text", sort="text", most=limits.prompt_characters, help="")
    words = text.read(value["text"])
    return from_url(value["image_url"], f"{place}.image_url"), words


def check_sampling(model: Model, options: Mapping[str, Any]) -> None:
    """Raise `APIError` for a key of the sampler that clients may not set: a text that is not a choice
    may be a file name, and no request may reach the disk."""
    from cm3apps.catalog import keys_of

    given = options.get("sampling", {})
    texts = {
        name
        for name, value in given.items()
        if name != "negative_prompt" and not isinstance(value, (bool, int, float))
    }
    if not texts:
        return
    name = options.get("sampler")
    config_class: type[Any] = (
        type(model.sampler_config())
        if name in (None, model.recipe.component_names.get("sampler"))
        # the class alone, because a key without a default may be among the given ones
        else model.components.registry.config_class("sampler", name, place="sampler")
    )
    choices = {
        key.name for key in keys_of(config_class) if "'" in key.type and "str" not in key.type
    }
    for name in sorted(texts):
        if name not in choices or not isinstance(given[name], str):
            raise invalid_value(
                "sampling",
                f"{shown(name)} is {shown(given[name])}, only numbers, flags and choices "
                "can be set in a request",
            )


def with_quality(
    options: dict[str, Any], quality: str, model: Model, number: int, limits: Limits
) -> dict[str, Any]:
    """The options, with more candidates for high quality, as far as the limits allow."""
    can_choose = "reranker" in model.recipe.component_names
    if quality not in HIGH or "num_candidates" in options or not can_choose:
        return options
    most = max(1, min(HIGH_QUALITY, limits.candidates, limits.at_once // number))
    return options | {"num_candidates": most}


async def structures(workshop: Workshop, intake: Intake) -> dict[str, Any]:
    """Extract the structure of a picture."""
    values, most = intake.values, workshop.limits.picture_pixels
    condition, name = values["condition"], workshop.pool.name_of(values.get("model"))
    async with workshop.pool.use(name) as loaded:
        await in_thread(workshop.structures.check, loaded.model, condition)
        upload = await intake.aside(from_url, values["image_url"], "image_url")
        pixels = await intake.decoded([upload], lambda: smaller(upload.pixels(most)))
        intake.forget_pictures()
        async with workshop.queue.place(intake.client, 1):
            drawn = await in_thread(workshop.structures.drawn, loaded.model, condition, pixels)
    answer: dict[str, Any] = await intake.encoded(drawn.answer)
    return answer
