"""A trained model: load it, then generate, caption, infill and edit.

    model = cm3core.load("runs/apples")
    pictures = model.generate("a red apple", num_images=4, seed=1)

`Model` is a facade over all other modules. `results` describes what its methods return; `aio` is the same for
coroutines. Names are imported on first use, because torch is slow to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cm3core._lazy import exporter

if TYPE_CHECKING:
    from cm3run.model.aio import AsyncModel
    from cm3run.model.async_engine import AsyncEngine
    from cm3run.model.chatting import Conversation
    from cm3run.model.model import Model, load
    from cm3run.model.results import (
        Choice,
        GeneratedImage,
        GeneratedText,
        ImageReady,
        InfilledImage,
        InfillReady,
        Nearest,
        RetrievedDocument,
        Scored,
    )
    from cm3run.model.turns import Reply, ReplyPart, ReplyPicture, ReplyReady, Turn

__all__ = [
    "AsyncEngine",
    "AsyncModel",
    "Choice",
    "Conversation",
    "GeneratedImage",
    "GeneratedText",
    "ImageReady",
    "InfillReady",
    "InfilledImage",
    "Model",
    "Nearest",
    "Reply",
    "ReplyPart",
    "ReplyPicture",
    "ReplyReady",
    "RetrievedDocument",
    "Scored",
    "Turn",
    "load",
]

__getattr__ = exporter(
    __name__,
    {
        "AsyncEngine": "async_engine",
        "AsyncModel": "aio",
        "Choice": "results",
        "Conversation": "chatting",
        "GeneratedImage": "results",
        "GeneratedText": "results",
        "ImageReady": "results",
        "InfillReady": "results",
        "InfilledImage": "results",
        "Model": "model",
        "Nearest": "results",
        "Reply": "turns",
        "ReplyPart": "turns",
        "ReplyPicture": "turns",
        "ReplyReady": "turns",
        "RetrievedDocument": "results",
        "Scored": "results",
        "Turn": "turns",
        "load": "model",
    },
)
