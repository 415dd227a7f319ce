"""Doing once what requests do, before a model counts as loaded: whatever is read or built at its first use is
then there."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from cm3apps.server.abilities import able
from cm3apps.server.facts import facts_of
from cm3apps.server.pictures import Output
from cm3core.generation.engine import PictureGrown
from cm3core.model.coroutines import in_thread
from cm3core.model.results import ImageReady

if TYPE_CHECKING:
    from cm3apps.server.tasks import Workshop
    from cm3core.model.aio import AsyncModel
    from cm3core.model.results import GeneratedImage

logger = logging.getLogger("cm3.serve")
#: A prompt where the model's data has none, and a word that no training text has.
_PROMPT, _UNKNOWN = "a", "qwxyzzyq"


async def warm_up(name: str, model: AsyncModel, workshop: Workshop) -> None:
    """Draw a picture with the recipe's defaults, and read one if the model can.

    What fails is logged, and stops nothing: requests may do without it (documents that aren't here), or say what is
    wrong.
    """
    start = time.monotonic()
    try:
        facts = await in_thread(facts_of, model, name, workshop)
        prompt = next(iter(facts["examples"]), _PROMPT)
        if model.model.words is not None:
            await in_thread(model.model.words.nearest, _UNKNOWN)
        abilities = able(model.model, workshop.forced)
        if "draw" in abilities:
            # a seed of its own, since a first candidate's is the request's
            drawn = await _drawn(model, prompt, upscale=facts["upscaler"] is not None)
            if "caption" in abilities:
                await model.caption(drawn.pixels, max_tokens=1)
    except asyncio.CancelledError:
        raise
    except Exception as error:
        logger.warning("model %s: its first picture, drawn as a test, failed", name, exc_info=error)
        return
    logger.info("model %s has drawn its first picture, in %.1f s", name, time.monotonic() - start)


async def _drawn(model: AsyncModel, prompt: str, **options: Any) -> GeneratedImage:
    """A picture, whose growth is shown and whose file is written as for a client."""
    is_shown = False
    async with aclosing(model.events(prompt, 1, truncate=True, **options)) as events:
        async for event in events:
            if isinstance(event, PictureGrown) and not is_shown:
                is_shown = True
                await model.preview(event.codes)
            if isinstance(event, ImageReady):
                await in_thread(Output().encode, event.image.pixels)
                return event.image
    raise AssertionError("the events end with a picture")
