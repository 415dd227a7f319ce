"""Fields that hold other components: a retriever made of retrievers, a sampler around a sampler.

    parts: dict[str, RetrieverConfig]      a recipe gives {words: bm25, meaning: {name: dense}}
    inner: SamplerConfig                   a recipe gives a name, or {name: cfg, guidance_scale: 3}

The annotation is the base of a kind's configs; which component of the kind it is, the recipe says.
Imports no torch.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from cm3core.interfaces.component import ComponentConfig


@dataclass(frozen=True)
class ComponentField:
    """A field whose values are components.

    Args:
        kind: of the components.
        form: "one", "list" or "dict" (of names that the recipe chooses).
        optional: whether it may be null.
    """

    kind: str
    form: Literal["one", "list", "dict"]
    optional: bool = False


def component_field(annotation: Any) -> ComponentField | None:
    """What components a field of that annotation holds; None for other fields."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_kind_base(annotation):
        return ComponentField(annotation.kind, "one")
    if origin in (Union, types.UnionType) and len(arguments) == 2 and types.NoneType in arguments:
        [inner] = [argument for argument in arguments if argument is not types.NoneType]
        found = component_field(inner)
        return None if found is None else ComponentField(found.kind, found.form, optional=True)
    if origin is list and is_kind_base(arguments[0]):
        return ComponentField(arguments[0].kind, "list")
    if origin is dict and arguments[0] is str and is_kind_base(arguments[1]):
        return ComponentField(arguments[1].kind, "dict")
    return None


def is_kind_base(annotation: Any) -> bool:
    """Whether a class is the base of a kind's configs (and not the config of one component)."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, ComponentConfig)
        and bool(vars(annotation).get("kind"))
    )


def components_in(value: Any) -> list[tuple[str, ComponentConfig]]:
    """(path, config) of the components that a field's value holds.

    The path is "" for one, ".0" or ".NAME" for those of a list or a dict."""
    if isinstance(value, ComponentConfig):
        return [("", value)]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return [(f".{key}", item) for key, item in items if isinstance(item, ComponentConfig)]
