"""`/v1/conditions`: the structure of a picture that was sent, as a model is to follow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cm3apps.server.fields import Field
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


async def structures(workshop: Workshop, client: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the structure of a picture."""
    name = workshop.pool.name_of(values.get("model"))
    async with workshop.pool.use(name) as loaded, workshop.queue.place(client, 1):
        answer: dict[str, Any] = await aside(
            workshop.structures.drawn, loaded.model, values, workshop.limits
        )
        return answer
