"""The keys and the component of one section, merged layer by layer.

Each key is checked against its field. A field that holds other components (`cm3core.config.schema`) has a section
for each of them, with the name and the keys. A section uses the component that the last layer names. Only that name
must be known: a component that a later layer replaces may belong to a plugin that is not installed, or to several.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from typing import Any

from cm3core.config.schema import (
    ComponentField,
    WrongTypeError,
    defaults,
    fit,
    is_interpolation,
    keys_of,
    to_plain,
)
from cm3core.config.words import correction, in_words, setting, shown_value
from cm3core.errors import PluginError, RecipeError, close_match
from cm3core.interfaces.component import ComponentConfig
from cm3core.plugins.registry import ANYONE, Registry, Writer, find
from cm3core.recipe.forms import MANDATORY, Items
from cm3core.recipe.layers import Layer

logger = logging.getLogger("cm3core.recipe")


class ComponentValues(dict[str, Any]):
    """Keys and "name" of a component inside another one, and the class that the name refers to."""

    def __init__(self, config_class: type[ComponentConfig], values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.config_class = config_class


@dataclass(frozen=True)
class Place:
    """A position for merging values: a layer, and a section or a key of it.

    Args:
        label: the layer's name in messages.
        path: section, key, key in it, ...
        owner: owner of the keys, for errors.
        origins: key -> layer, which is updated.
        registry: the available components.
        writer: resolves bare names of components in the layer.
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
    known = keys_of(config_class)
    if any(isinstance(key, int) for key in given):
        raise RecipeError(
            str(place), f"{place.owner} is not a list", f"write {place.dotted}.KEY=VALUE"
        )
    if place.writer.stored:
        given = {**getattr(config_class, "earlier", {}), **given}
    for key, value in _with_new_names(place, given, config_class).items():
        here = place.below(key)
        if key not in known:
            step = _component_step(place, key, value) or close_match(key, known)
            raise RecipeError(str(here), f"{place.owner} has no key {key!r}", step)
        if isinstance(value, Items):
            value = _with_items(here, value, into.get(key, defaults(config_class)[key]))
        components, inner, annotation = (
            known[key].components,
            known[key].nested,
            known[key].annotation,
        )
        if components is not None and value != MANDATORY:
            _merge_components(here, components, value, into, key, annotation)
            continue
        if inner is not None and isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge_values(place.below(key, owner=f"{place.owner}, {key},"), value, inner, into[key])
            continue
        if value == MANDATORY:
            into.pop(key, None)
            place.origins.pop(here.dotted, None)
            forget(here.dotted, place.origins)
            continue
        try:
            fitting = fit(value, annotation)
        except WrongTypeError as error:
            start = into.get(key, defaults(config_class)[key])
            raise wrong_type(str(here), value, annotation, error, start) from error
        merged = (
            {**into[key], **fitting}
            if isinstance(fitting, dict) and isinstance(into.get(key), dict)
            else fitting
        )
        forget(here.dotted, place.origins)
        into[key], place.origins[here.dotted] = merged, place.label


def _component_step(place: Place, key: str, value: object) -> str:
    """The next step if a section's key is the name of a component of its kind; "" otherwise."""
    section = place.path[0]
    if len(place.path) > 1 or key not in place.registry.names(section):
        return ""
    keys = value if isinstance(value, dict) else {}
    return f"write {section}={key}" + "".join(
        f" {section}.{name}={shown_value(inner)}" for name, inner in keys.items()
    )


def _with_items(place: Place, items: Items, current: object) -> list[Any]:
    """Return a list with some of its items replaced; the keys given for a component are merged with it."""
    plain = to_plain(current)
    if not isinstance(plain, list):
        first, item = next(iter(items.items()))
        unset = current is MISSING or current is None
        raise RecipeError(
            f"{place}[{first}]",
            f"{place.dotted} {'has no value' if unset else f'is {plain!r}, not a list'}",
            f"write {setting(str(place), [item] if unset else item)}",
        )
    for number, item in items.items():
        if number >= len(plain):
            raise RecipeError(
                f"{place}[{number}]",
                f"the list has {len(plain)} items, numbered from 0",
                f"write the whole list: {shlex.quote(f'{place.dotted}={shown_value(plain)}')}",
            )
        if isinstance(item, Items):
            item = _with_items(place.below(str(number)), item, plain[number])
        elif isinstance(item, dict) and isinstance(plain[number], dict):
            item = {**plain[number], **item}
        plain[number] = item
    return plain


def _merge_components(
    place: Place, wanted: ComponentField, value: object, into: dict[str, Any], key: str, shown: Any
) -> None:
    """Merge a field that holds components; each becomes a dict with its keys and its "name".

    A component that is given another name starts afresh; null removes one from a dict; a list replaces the
    list of earlier layers."""
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
            if item is None or item == MANDATORY:
                into[key].pop(name, None)
                forget(f"{place.dotted}.{name}", place.origins)
            else:
                _merge_component(place.below(name), wanted.kind, item, into[key], name)
    else:
        name = _near_name(value, wanted.kind, place.registry)
        example = [name] if wanted.form == "list" else {name: name}
        step = f"write {setting(str(place), example)}"
        raise RecipeError(str(place), f"is {value!r}, must be {in_words(shown)}", step)


def _merge_component(
    place: Place, kind: str, value: object, into: dict[str, Any], key: str
) -> None:
    """Merge one component, `into[key]`, which an earlier layer may have chosen."""
    given = {"name": value} if isinstance(value, str) else value
    if not isinstance(given, dict):
        raise not_a_component(str(place), value, kind, place.registry)
    chosen = into.get(key)
    chosen = chosen if isinstance(chosen, ComponentValues) else None
    name = given.get("name", None if chosen is None else chosen["name"])
    at_name, known = f"{place}.name", ", ".join(place.registry.names(kind))
    if name is None:
        raise RecipeError(at_name, f"is missing: the {kind}'s name", f"name one: {known}")
    if not isinstance(name, str) or is_interpolation(name):
        raise no_name(str(place), name, kind, place.registry)
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
    """Return a layer's keys with renamed ones under their current names; warn about each."""
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
    place: str,
    value: object,
    annotation: Any,
    error: WrongTypeError | None = None,
    default: Any = MISSING,
) -> RecipeError:
    """The error for a value of another type than its key has.

    Args:
        place: the layer and the key.
        value: wrong.
        annotation: the key's.
        error: says which part of the value is wrong.
        default: the key's; `MISSING`: none.
    """
    inside = (
        f" (in it, {error.value!r} is not {in_words(error.annotation)})"
        if error is not None and error.value is not value
        else ""
    )
    return RecipeError(
        place,
        f"is {value!r}{inside}, must be {in_words(annotation)}",
        correction(place, value, annotation, default),
    )


def no_name(place: str, value: object, kind: str, registry: Registry) -> RecipeError:
    """The error for a value that is not the name of a component; `place` is the section's or key's."""
    return RecipeError(
        f"{place}.name",
        f"is {value!r}, must be the name of a component ({', '.join(registry.names(kind))})",
        f"write {setting(place, _near_name(value, kind, registry))}",
    )


def not_a_component(place: str, value: object, kind: str, registry: Registry) -> RecipeError:
    """The error for a value that is neither the name of a component nor its keys."""
    return RecipeError(
        place,
        f"is {value!r}, must be {in_words(registry.kinds[kind].config)}",
        f"write {setting(place, _near_name(value, kind, registry))}",
    )


def _near_name(value: object, kind: str, registry: Registry) -> str:
    """The name of a component that a wrong value may stand for, or else of any."""
    meant = value[0] if isinstance(value, list) and len(value) == 1 else value
    meant = value.get("name") if isinstance(value, dict) else meant
    known = registry.names(kind)
    return meant if isinstance(meant, str) and meant in known else next(iter(known), "NAME")


def forget(section: str, origins: dict[str, str]) -> None:
    """Forget the origins of a section's, or a key's, values."""
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]


@dataclass
class Section:
    """A section while layers are merged into it.

    Args:
        config_class: its dataclass; None if the component is unavailable.
        component: its name, None in fixed sections.
        error: why the component is unavailable.
        values, origins: the keys set for it, and the layers that set them.
    """

    config_class: type[Any] | None
    component: str | None = None
    error: PluginError | None = None
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def merge(self, layer: Layer, section: str, given: dict[str, Any], registry: Registry) -> None:
        """Merge a layer's keys; those of an unavailable component are kept unchecked."""
        if self.config_class is None:
            self.values |= given
            return
        owner = (
            f"the {section} {self.component!r}" if self.component else f"the section {section!r}"
        )
        place = Place(layer.label, (section,), owner, self.origins, registry, layer.writer)
        merge_values(place, given, self.config_class, self.values)


@dataclass(frozen=True)
class Choice:
    """A layer's choice for a component's section: a name or None, and `keys`."""

    layer: Layer
    kind: str
    name: str | None
    keys: dict[str, Any]

    @classmethod
    def of(cls, layer: Layer, kind: str, given: dict[str, Any], registry: Registry) -> Choice:
        """Split a layer's section into the component's name and its keys."""
        keys = dict(given)
        name = keys.pop("name", None)
        if name is not None and (not isinstance(name, str) or is_interpolation(name)):
            raise no_name(f"{layer.label}: {kind}", name, kind, registry)
        return cls(layer, kind, name, keys)

    def find(self, registry: Registry) -> type[Any] | PluginError:
        """Return the config class of its name, or the error."""
        assert self.name is not None
        place = f"{self.layer.label}: {self.kind}.name"
        try:
            return find(registry, self.kind, self.name, place=place, writer=self.layer.writer)
        except PluginError as error:
            return error


def chosen(choices: Sequence[Choice], registry: Registry) -> Section:
    """Merge the layers' choices for one kind, in their order.

    A changed component replaces the section; otherwise keys are merged. If several plugins provide a bare name, a
    later layer that names one of them in full decides.

    Raises:
        PluginError: the component, or an inner one, is unavailable.
        RecipeError: keys are given before any layer chose a component, or one is wrong.
    """
    last = next((choice for choice in reversed(choices) if choice.name is not None), None)
    final = None if last is None else last.find(registry)
    short = "" if last is None else str(last.name).rpartition("/")[2]
    section: Section | None = None
    for choice in choices:
        kind, label = choice.kind, choice.layer.label
        if choice.name is not None:
            found = final if choice is last else choice.find(registry)
            assert found is not None
            if isinstance(found, PluginError) and isinstance(final, type) and choice.name == short:
                found = final
            config_class = None if isinstance(found, PluginError) else found
            if section is None or config_class is None or section.config_class is not config_class:
                section = Section(config_class)
            section.error = found if isinstance(found, PluginError) else None
            section.component, section.origins[f"{kind}.name"] = choice.name, label
        elif section is None:
            raise RecipeError(
                f"{label}: {kind}.name",
                "is missing: no layer before this one chose a component",
                f"name one: {', '.join(registry.names(kind))}",
            )
        section.merge(choice.layer, kind, choice.keys, registry)
    assert section is not None
    if section.error is not None:
        raise section.error
    return section
