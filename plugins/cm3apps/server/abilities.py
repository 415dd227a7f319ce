"""What a model can be asked for: what it was tuned for, and what a server makes it try."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from cm3apps.server.errors import APIError
from cm3core.interfaces.task import FieldType
from cm3run.model.tasks import conversing_task

if TYPE_CHECKING:
    from cm3core.interfaces.task import TaskConfig
    from cm3run.model.model import Model

Ability: TypeAlias = Literal[
    "draw", "fill", "caption", "ask", "edit", "chat", "turns", "boxes", "structure"
]
#: Abilities that are tasks of certain fields, whatever a model calls them: what is given, and the
#: type of what is asked for.
SHAPES: Mapping[str, tuple[Mapping[str, FieldType], FieldType]] = {
    "chat": ({"image": "image", "conversation": "text"}, "text"),
    "boxes": ({"caption": "text", "objects": "text"}, "image"),
    "structure": ({"feature": "text", "condition": "image", "caption": "text"}, "image"),
}
#: Ability -> what a model that lacks it is not known to be tuned to do, and what to do instead.
_REFUSALS: Mapping[str, tuple[str, str]] = {
    "edit": (
        "edit pictures by instruction",
        "fill a part of the picture instead (mask), or start the server with --force edit",
    ),
    "ask": (
        "answer questions",
        "send the picture without a question for a caption, or start the server with --force ask",
    ),
    "boxes": (
        "draw objects at boxes",
        "leave out boxes, or serve a model that was tuned for object_to_image",
    ),
    "structure": (
        "draw by a picture of a structure",
        "leave out condition, or serve a model that was tuned for structure",
    ),
}


def task_of(model: Model, ability: str) -> str | None:
    """The name of the model's task for one of `SHAPES`; None: it was tuned for none."""
    given, response = SHAPES[ability]
    for name, config in model.tasks.configs.items():
        if _shape(config) == (given, [response]):
            return name
    return None


def _shape(config: TaskConfig) -> tuple[Mapping[str, FieldType], list[FieldType]]:
    task = config.build()
    given = {name: task.fields[name] for name in task.given}
    return given, [task.fields[name] for name in task.responses]


def in_turns(model: Model) -> bool:
    """Whether a model converses in its layout's turns, with pictures on both sides."""
    has_turns = model.components.serializer.layout.has_turns
    return model.tasks.turns and has_turns and conversing_task(model) is None


def able(model: Model, forced: Collection[str]) -> list[str]:
    """What the model is known to be able to do, and what it is made to try; never what its layout has no
    sequences for.

    One that was tuned for nothing draws, fills and captions, as it was trained to.
    """
    serializer = model.components.serializer
    reads, fills = serializer.layout.reads_pictures, serializer.max_spans > 0
    describes = reads and serializer.layout.writes_text
    tuned = model.tasks
    serves = {vars(type(config)).get("serves") for config in tuned.configs.values()}
    plain = not tuned.names or tuned.plain
    known = {
        "draw": plain or "generate" in serves,
        "fill": True,
        "caption": plain or "caption" in serves,
        "ask": "ask" in serves,
        "edit": "edit" in serves,
        "turns": in_turns(model),
        **{name: task_of(model, name) is not None for name in SHAPES},
    }
    impossible = {
        *(() if fills else ("fill",)),
        *(() if reads else ("edit", "structure")),
        *(() if describes else ("caption", "ask", "chat")),
    }
    return [
        name for name, can in known.items() if (can or name in forced) and name not in impossible
    ]


def refuse_untuned(model: Model, ability: str, forced: Collection[str]) -> bool:
    """Whether the model has to be forced to do it.

    Raises:
        APIError: it is not known to be able to, and isn't forced.
    """
    if ability not in able(model, forced):
        what, instead = _REFUSALS[ability]
        raise APIError(
            400,
            f"the model is not known to be tuned to {what}: what it made would mean nothing; "
            f"{instead}",
            code="not_supported_by_model",
        )
    return ability not in able(model, ())
