"""`/v1/conditions`: the structure of a picture that was sent, as a model is to follow it."""

from __future__ import annotations

from typing import Any

from cm3apps.server.fields import Field
from cm3apps.server.intake import Intake
from cm3apps.server.pictures import from_url
from cm3apps.server.structures import smaller
from cm3apps.server.tasks import Workshop, aside


def structure_fields() -> tuple[Field, ...]:
    """`POST /v1/conditions`."""
    return (
        Field(
            name="condition",
            sort="text",
            most=300,
            required=True,
            ours=True,
            help="what is drawn of the picture: one of `conditions` of /studio/facts, such as canny",
        ),
        Field(
            name="image_url",
            sort="text",
            required=True,
            ours=True,
            help="the picture, as data:image/png;base64,...",
        ),
        Field(
            name="model",
            sort="text",
            most=300,
            help="one of /v1/models, which is to follow the structure; the first by default",
        ),
    )


async def structures(workshop: Workshop, intake: Intake) -> dict[str, Any]:
    """Draw the structure of a picture."""
    values, most = intake.values, workshop.limits.picture_pixels
    condition, name = values["condition"], workshop.pool.name_of(values.get("model"))
    async with workshop.pool.use(name) as loaded:
        await aside(workshop.structures.check, loaded.model, condition)
        upload = await intake.aside(from_url, values["image_url"], "image_url")
        pixels = await intake.decoded([upload], lambda: smaller(upload.pixels(most)))
        intake.forget_pictures()
        async with workshop.queue.place(intake.client, 1):
            drawn = await aside(workshop.structures.drawn, loaded.model, condition, pixels)
    answer: dict[str, Any] = await intake.encoded(drawn.answer)
    return answer
