"""`/v1/sets`: several things in one style, as pictures, as a grid, and as a zip."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cm3run.attribution import licences_text
from cm3run.model.facts import facts_of_sheet, marked
from cm3run.picture_files import LICENCES, file_names, sheet, styled, write_zip
from cm3serve.errors import invalid_value
from cm3serve.field_tables import draw_field, model_field, sampling_fields
from cm3serve.fields import Field, shown
from cm3serve.images_api import Answer, Asked, Reply, can_trace
from cm3serve.intake import Intake
from cm3serve.pictures import Output, text_of_base64
from cm3serve.sending import Event
from cm3serve.tasks import Drawn, Partial, Workshop

if TYPE_CHECKING:
    from cm3core.document import PixelArray
    from cm3run.model.results import GeneratedImage
    from cm3serve.settings import Limits

#: The formats of each picture in a zip.
FORMATS = ("png", "transparent", "svg")


def set_fields(limits: Limits) -> tuple[Field, ...]:
    """`POST /v1/sets`."""
    text = limits.prompt_characters
    return (
        Field(
            name="things",
            sort="list",
            most=limits.at_once,
            required=True,
            ours=True,
            help='the things to draw, one per picture: ["bell", "house", "key"]',
        ),
        Field(
            name="style",
            sort="text",
            most=text,
            ours=True,
            help="appended to each thing, after a comma",
        ),
        Field(
            name="formats",
            sort="list",
            most=len(FORMATS),
            ours=True,
            help=f"formats of each picture in the zip, of {', '.join(FORMATS)}; png by default",
        ),
        model_field(),
        Field(
            name="size",
            sort="text",
            most=20,
            help="auto, the model's own size, or WIDTHxHEIGHT in its aspect ratio",
        ),
        Field(name="stream", sort="flag", help="answer with server-sent events"),
        Field(
            name="partial_images",
            sort="whole",
            least=0,
            most=256,
            help="with stream: previews of each picture, with the rows finished so far",
        ),
        Field(
            name="return_svg",
            sort="flag",
            ours=True,
            help="also return each picture traced as an SVG; of a found picture, its original",
        ),
        draw_field(),
        *sampling_fields(limits),
    )


async def sets(workshop: Workshop, intake: Intake) -> Answer:
    """Draw the things of a set."""
    values = intake.values
    things = _things(values["things"], workshop.limits)
    formats = _formats(values.get("formats", ["png"]))
    texts = styled(things, values.get("style", "").strip())
    asked = await Asked.of(workshop, intake, "draw", texts=texts)
    task, name = await asked.task(), asked.name
    reply = await Reply.of(workshop, asked, task, "set")
    reply.unknown_words = await workshop.unknown_words(name, task.texts)
    work = _Set(reply, things, formats)
    events = work.events(workshop.pictures(intake.client, name, task))
    if values.get("stream"):
        return events
    async with aclosing(events):
        async for _ in events:
            pass
    return {"data": [work.items[place] for place in range(len(things))]} | work.whole


def _things(given: Sequence[Any], limits: Limits) -> list[str]:
    most = limits.prompt_characters
    things = [
        Field(name=f"things[{place}]", sort="text", most=most, help="").read(one).strip()
        for place, one in enumerate(given)
    ]
    if not all(things):
        raise invalid_value(f"things[{things.index('')}]", "is empty", "things")
    if not things:
        raise invalid_value("things", "is empty; name some")
    return things


def _formats(given: Sequence[Any]) -> tuple[str, ...]:
    for one in given:
        if one not in FORMATS:
            raise invalid_value(
                "formats", f"has {shown(one)}, must be some of {', '.join(FORMATS)}"
            )
    if "svg" in given and not can_trace():
        raise invalid_value(
            "formats",
            "svg needs the package vtracer on the server. Next: pip install 'cm3leon[svg]' "
            "there, or leave svg out",
        )
    return tuple(one for one in FORMATS if one in given) or ("png",)


class _Set:
    """The response with a set.

    Args:
        reply: returns the pictures.
        things: the things of the pictures.
        formats: the formats in the zip.
    """

    def __init__(self, reply: Reply, things: Sequence[str], formats: Sequence[str]) -> None:
        self.reply, self.things, self.formats = reply, things, formats
        self.files = file_names(["grid", *things])[1:]
        self.items: dict[int, dict[str, Any]] = {}
        self.whole: dict[str, Any] = {}

    async def events(
        self, events: AsyncGenerator[Partial | Drawn, None]
    ) -> AsyncGenerator[Event, None]:
        """Partial and finished pictures as they are generated, then `set.completed` with all of them."""
        made: dict[int, Any] = {}
        async with aclosing(events):
            async for one in events:
                if isinstance(one, Partial):
                    yield await self.reply.partial(one)
                    continue
                made[one.picture] = self.reply.naming.recognised(one.result)
                names = {
                    "thing": self.things[one.picture],
                    "prompt": self.reply.task.texts[one.picture],
                    "file": self.files[one.picture],
                }
                self.items[one.picture] = names | await self.reply.encoded(
                    self.reply.item, one.result
                )
                yield Event("set.picture", self.reply.head(one.picture) | self.items[one.picture])
        pictures = [made[place] for place in range(len(self.things))]
        grid, zipped = await self.reply.encoded(self._packed, pictures)
        self.whole = {
            "created": int(time.time()),
            "grid": text_of_base64(grid),
            "zip": text_of_base64(zipped),
            "seed": self.reply.task.options["seed"],
            "size": self.reply.wish.size,
            "unknown_words": self.reply.unknown_words,
            "usage": self.reply.usage(pictures),
        }
        yield Event("set.completed", self.whole)

    def _packed(self, pictures: Sequence[GeneratedImage]) -> tuple[bytes, bytes]:
        """The grid and the zip."""
        facts = facts_of_sheet(
            self.reply.model,
            pictures,
            prompt="\n".join(self.reply.task.texts),
            seed=str(self.reply.task.options["seed"]),
        )
        grid = Output().encode(sheet([one.pixels for one in pictures], self.things), facts)
        files = []
        for name, picture in zip(self.files, pictures, strict=True):
            files += [(name + end, content) for end, content in self._formats(picture)]
        target = io.BytesIO()
        names = (name + marked(picture) for name, picture in zip(self.files, pictures, strict=True))
        licences = licences_text(
            zip(names, (one.credits for one in pictures), strict=True)
        ).encode()
        write_zip(target, [*files, ("grid.png", grid), (LICENCES, licences)])
        return grid, target.getvalue()

    def _formats(self, picture: GeneratedImage) -> list[tuple[str, bytes]]:
        """The picture's files, as (suffix, content) pairs."""
        pixels: PixelArray = picture.pixels if picture.upscaled is None else picture.upscaled
        facts, output = self.reply.facts(picture), self.reply.wish.output
        files = []
        for one in self.formats:
            if one == "png":
                files.append((".png", output.encode(pixels, facts)))
            elif one == "transparent":
                clear = replace(output, transparent=True)
                files.append(("-transparent.png", clear.encode(pixels, facts)))
            else:
                files.append((".svg", self.reply.svg(picture).encode()))
        return files
