"""Doing once what requests do, before a model counts as loaded: whatever is read or built at its first use is
then there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cm3apps.server import images_api
from cm3apps.server.abilities import able
from cm3apps.server.facts import facts_of
from cm3apps.server.intake import Intake
from cm3apps.server.pool import ModelPool
from cm3apps.server.queueing import FairQueue
from cm3run.model.async_engine import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from cm3apps.server.streaming import Event
    from cm3apps.server.tasks import Workshop
    from cm3run.model.aio import AsyncModel

logger = logging.getLogger("cm3.serve")
#: A prompt where the model's data has none, and a word that no training text has.
_PROMPT, _UNKNOWN = "a", "qwxyzzyq"
#: Pixels of a side from which the page asks for an enlarged picture.
_LARGE = 256


class _ThisModel(ModelPool):
    """A pool of one model that is in memory but not yet anybody's."""

    def __init__(self, name: str, model: AsyncModel) -> None:
        super().__init__({name: lambda: model.model}, 1)
        self.model = model

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[AsyncModel]:
        """The model."""
        yield self.model


async def warm_up(name: str, model: AsyncModel, workshop: Workshop) -> None:
    """Answer a request for a picture as a client's, with the recipe's defaults, and read a picture if the model can.

    What fails is logged, and stops nothing: requests may do without it (documents that aren't here), or say what is
    wrong.
    """
    start, most = time.monotonic(), workshop.limits.at_once
    own = replace(
        workshop,
        pool=_ThisModel(name, model),
        queue=FairQueue(most, 1, 1),
        on_finished=lambda sort: None,
    )
    try:
        facts = await in_thread(facts_of, model, name, own)
        if "draw" in facts["tasks"]:
            await _draw(own, facts)
        if "caption" in able(model.model, ()):
            height, width = model.model.image_size
            await model.caption(_striped(height, width), max_tokens=1)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # of any component: the request of a user would tell it
        logger.warning("model %s: its first picture, drawn as a test, failed", name, exc_info=error)
        return
    logger.info("model %s has drawn its first picture, in %.1f s", name, time.monotonic() - start)


async def _draw(own: Workshop, facts: Mapping[str, Any]) -> None:
    """Have a picture drawn as the page does, with a word that must be looked for among all."""
    width, height = facts["size"]
    times = [one for one in (1, 2, 4, 8) if max(width, height) * one <= own.limits.side]
    large = next((one for one in times if max(width, height) * one >= _LARGE), 1)
    factor = large if facts["upscaler"] is not None else 1
    values = {
        "prompt": f"{next(iter(facts['examples']), _PROMPT)} {_UNKNOWN}",
        "truncate": True,
        "size": f"{width * factor}x{height * factor}",
        "stream": True,
        "partial_images": 1,
        "return_documents": True,
        "return_svg": facts["svg"],
    }
    intake = Intake(own.gate, "")
    intake.values = values
    try:
        answer = await images_api.generations(own, intake)
        async with aclosing(cast("AsyncGenerator[Event, None]", answer)) as events:
            async for _ in events:
                pass
    finally:
        intake.close()


def _striped(height: int, width: int) -> Any:
    """A picture that is not all of one colour, uint8 [height, width, 3]."""
    import numpy as np

    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[:, : width // 2] = 0
    return pixels
