"""Keys of one section, of one layer after the other.

Each is checked against its field. A field that holds other components
(`cm3core.config.schema`) has a section of its own for each: their names, and their keys.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cm3core.config.schema import (
    ComponentField,
    WrongTypeError,
    component_field,
    fit,
    hints,
    is_interpolation,
    nested_dataclass,
    shown_type,
)
from cm3core.errors import RecipeError, close_match
from cm3core.interfaces.component import ComponentConfig
from cm3core.plugins.lookup import find
from cm3core.plugins.providers import ANYONE, Writer
from cm3core.plugins.registry import Registry

logger = logging.getLogger("cm3core.recipe")

#: OmegaConf's way to write "this must still be given".
MANDATORY = "???"


class ComponentValues(dict[str, Any]):
    """Keys and "name" of a component inside another one, and the class that the name means."""

    def __init__(self, config_class: type[ComponentConfig], values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.config_class = config_class


@dataclass(frozen=True)
class Place:
    """Where values are merged: a layer, and a section or a key of it.

    Args:
        label: the layer's name in messages.
        path: section, key, key in it, ...
        owner: what has the keys, for errors.
        origins: key -> layer, which is updated.
        registry: the components that there are.
        writer: whom bare names of components mean in the layer.
    """

    label: str
    path: tuple[str, ...]
    owner: str
    origins: dict[str, str]
    registry: Registry
    writer: Writer = ANYONE

    def below(self, *keys: str, owner: str | None = None) -> Place:
        """A place further down."""
        return replace(self, path=(*self.path, *keys), owner=owner or self.owner)

    @property
    def dotted(self) -> str:
        """The path as `section.key`."""
        return ".".join(self.path)

    def __str__(self) -> str:
        return f"{self.label}: {self.dotted}"


def merge_values(
    place: Place, given: dict[str, Any], config_class: type[Any], into: dict[str, Any]
) -> None:
    """Merge a layer's keys over those of earlier layers, checking each against the dataclass."""
    annotations = hints(config_class)
    for key, value in _with_new_names(place, given, config_class).items():
        here = place.below(key)
        if key not in annotations:
            raise RecipeError(
                str(here), f"{place.owner} has no key {key!r}", close_match(key, annotations)
            )
        components = component_field(annotations[key])
        if components is not None and value != MANDATORY:
            _merge_components(here, components, value, into, key, annotations[key])
            continue
        inner = nested_dataclass(annotations[key])
        if inner is not None and isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge_values(place.below(key, owner=f"{place.owner}, {key},"), value, inner, into[key])
            continue
        if value == MANDATORY:
            into.pop(key, None)
            continue
        try:
            fitting = fit(value, annotations[key])
        except WrongTypeError as error:
            raise wrong_type(str(here), value, shown_type(annotations[key]), error) from error
        merged = (
            {**into[key], **fitting}
            if isinstance(fitting, dict) and isinstance(into.get(key), dict)
            else fitting
        )
        forget(here.dotted, place.origins)
        into[key], place.origins[here.dotted] = merged, place.label


def _merge_components(
    place: Place, wanted: ComponentField, value: object, into: dict[str, Any], key: str, shown: Any
) -> None:
    """Merge a field that holds components; each becomes a dict with its keys and its "name".

    One that is given another name starts anew; null removes one of a dict; a list replaces the
    list of the layers before."""
    if value is None and wanted.optional:
        forget(place.dotted, place.origins)
        into[key], place.origins[place.dotted] = None, place.label
    elif wanted.form == "one":
        _merge_component(place, wanted.kind, value, into, key)
    elif wanted.form == "list" and isinstance(value, list):
        forget(place.dotted, place.origins)
        chosen: dict[str, Any] = {}
        for number, item in enumerate(value):
            _merge_component(place.below(str(number)), wanted.kind, item, chosen, str(number))
        into[key], place.origins[place.dotted] = list(chosen.values()), place.label
    elif wanted.form == "dict" and isinstance(value, dict):
        if not isinstance(into.get(key), dict):
            into[key] = {}
        place.origins.setdefault(place.dotted, place.label)
        for name, item in value.items():
            if item is None:
                into[key].pop(name, None)
                forget(f"{place.dotted}.{name}", place.origins)
            else:
                _merge_component(place.below(name), wanted.kind, item, into[key], name)
    else:
        raise wrong_type(str(place), value, shown_type(shown))


def _merge_component(
    place: Place, kind: str, value: object, into: dict[str, Any], key: str
) -> None:
    """Merge one component, `into[key]`, which an earlier layer may have chosen."""
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise wrong_type(str(place), value, f"a {kind}: its name, or a mapping with it")
    chosen = into.get(key)
    chosen = chosen if isinstance(chosen, ComponentValues) else None
    name = given.get("name", None if chosen is None else chosen["name"])
    at_name, known = f"{place}.name", ", ".join(place.registry.names(kind))
    if name is None:
        raise RecipeError(at_name, f"is missing: which {kind} it is", f"name one: {known}")
    if not isinstance(name, str) or is_interpolation(name):
        raise wrong_type(at_name, name, f"the name of a component ({known})")
    config_class = find(
        place.registry, kind, name, place=at_name, writer=place.writer, key=place.dotted
    )
    if chosen is None or chosen.config_class is not config_class:
        forget(place.dotted, place.origins)
        chosen = ComponentValues(config_class, {})
    if chosen.get("name") != name:
        place.origins[f"{place.dotted}.name"] = place.label
    into[key] = ComponentValues(config_class, {**chosen, "name": name})
    keys = {item: own for item, own in given.items() if item != "name"}
    merge_values(
        place.below(owner=f"the {kind} {name!r} at {place.dotted}"), keys, config_class, into[key]
    )


def _with_new_names(place: Place, given: dict[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """Return a layer's keys with renamed ones under their present names; warn of each."""
    renamed: Mapping[str, str] = getattr(config_class, "renamed", {})
    for old in [key for key in given if key in renamed]:
        where, new = str(place.below(old)), renamed[old]
        if new in given:
            raise RecipeError(where, f"is the old name of {new!r}, which is given too", "remove it")
        logger.warning(
            "%s: the key is now called %r: use that, the old name will be removed", where, new
        )
        given = {renamed[old] if key == old else key: value for key, value in given.items()}
    return given


def wrong_type(
    place: str, value: object, expected: str, error: WrongTypeError | None = None
) -> RecipeError:
    """The error for a value of another type than its key has."""
    step = "correct the value"
    if isinstance(value, float) and value.is_integer() and "int" in expected:
        step = f"write {int(value)}"
    elif "str" in expected and not isinstance(value, (str, list, dict)) and value is not None:
        step = f"write it in quotes: '\"{value}\"'"
    inside = (
        f" (in it, {error.value!r} is not {error.expected})"
        if error is not None and error.value is not value
        else ""
    )
    return RecipeError(place, f"is {value!r}{inside}, expected {expected}", step)


def forget(section: str, origins: dict[str, str]) -> None:
    """Drop what is known of where a section's, or a key's, values came from."""
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]
