"""A component's config together with the components in its fields: checks and needs of all.

Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass

from cm3core.config.component_fields import component_field, components_in
from cm3core.config.schema import hints
from cm3core.errors import RecipeError
from cm3core.interfaces.component import ComponentConfig


def parts_of(config: object) -> Iterator[tuple[str, ComponentConfig]]:
    """(path, config) of the components in a config's own fields, e.g. "parts.words"."""
    for name, annotation in hints(type(config)).items():
        value = getattr(config, name)
        if component_field(annotation) is not None:
            yield from ((f"{name}{path}", part) for path, part in components_in(value))
        elif is_dataclass(value) and not isinstance(value, ComponentConfig):
            yield from ((f"{name}.{path}", part) for path, part in parts_of(value))


def all_parts(config: object) -> Iterator[tuple[str, ComponentConfig]]:
    """The same at every depth."""
    for path, part in parts_of(config):
        yield path, part
        yield from ((f"{path}.{deeper}", inner) for deeper, inner in all_parts(part))


def check_config(config: ComponentConfig, place: str = "") -> None:
    """Call `check` of a component's config, and of the components in it.

    Args:
        config: checked.
        place: where it is in the recipe, e.g. "retriever.parts.words"; "": its kind's section.

    Raises:
        RecipeError: a value is refused; of an inner component, with its place in the recipe.
    """
    place = place or config.kind
    try:
        ComponentConfig.check(config)  # a plugin's own may not call its base's
        config.check()
    except RecipeError as error:
        inner = error.place.removeprefix(f"{config.kind}.")
        if place == config.kind or inner == error.place:
            raise
        raise type(error)(f"{place}.{inner}", error.cause, error.next_step) from error
    for path, part in parts_of(config):
        check_config(part, f"{place}.{path}")


def needs_of(config: ComponentConfig) -> tuple[str, ...]:
    """Sections that a component needs, itself or for the components in it."""
    needed = [*config.needs, *(kind for _, part in all_parts(config) for kind in part.needs)]
    return tuple(dict.fromkeys(needed))
