"""Change a component's keys for one call, or replace the sampler by another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from cm3core.config.schema import (
    ComponentField,
    WrongTypeError,
    check_config,
    component_field,
    fit,
    hints,
)
from cm3core.config.words import correction, in_words
from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import SamplerConfig

C = TypeVar("C", bound=ComponentConfig)
#: Finds the config class of a component, by its kind, its name and the key that names it.
Find: TypeAlias = Callable[[str, str, str], type[ComponentConfig]]
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
#: Keys that carry over to another sampler which can have their value: filters after mixing, and what a second stream
#: sees, depend on the model rather than on the mixing. Guidance scales and plausible sets don't carry over.
CARRIED = (*_FILTERS, *(f"text_{key}" for key in _FILTERS), "null_prompt")


def named_config(
    config_class: type[C],
    values: Mapping[str, Any],
    place: str,
    given: Mapping[str, Any] = _NOTHING,
) -> C:
    """Return the config of a component that is named for one call and not described by a recipe.

    Args:
        config_class: the component's.
        values: of its keys; the others have their defaults.
        place: its place in the recipe.
        given: the keys given together with the name: those without a default are taken from here, unchecked.

    Raises:
        GenerationError: a key has no default and is not given.
    """
    for item in fields(config_class):
        if item.name in values or not item.init:
            continue
        if item.default is MISSING and item.default_factory is MISSING:
            if item.name not in given:
                raise GenerationError(
                    f"{place}.{item.name}",
                    f"is not given, and {config_class.__name__} has no default for it",
                    f"set it if you can, or name another {config_class.kind}",
                )
            values = {**values, item.name: given[item.name]}
    return config_class(**values)


def in_place_of(
    config: SamplerConfig | None,
    other: type[SamplerConfig],
    name: str = "",
    given: Mapping[str, Any] = _NOTHING,
    place: str = "sampler",
) -> SamplerConfig:
    """Return another sampler's config, with the first one's values of `CARRIED`.

    A sampler that wraps another one wraps the first sampler, whose name is `name`. All other keys have
    the other sampler's defaults; those without one are taken from `given`, unchecked.

    Raises:
        GenerationError: a key without a default is not given.
    """
    mine = set() if config is None else {item.name for item in fields(config)}
    kept = {}
    for key in (one for one in CARRIED if one in mine & hints(other).keys()):
        with suppress(WrongTypeError):
            kept[key] = fit(getattr(config, key), hints(other)[key])
    wrapped = [
        name
        for name, annotation in hints(other).items()
        if (field := component_field(annotation)) and (field.kind, field.form) == ("sampler", "one")
    ]
    if config is not None and len(wrapped) == 1:
        kept[wrapped[0]] = inner = replace(config)
        choose(inner, name)
    return named_config(other, kept, place, given)


def with_options(
    config: C, options: Mapping[str, Any], place: str = "", find: Find | None = None
) -> C:
    """Return a component's config with some keys changed, checked like a recipe.

    Args:
        config: not modified.
        options: key -> value; a key of an inner component is dotted ("inner.temperature", "parts.words.k1"),
            and the inner component itself is chosen by name ("inner", "parts.words"). None removes one of
            several by names; a list replaces the list.
        place: its place in the recipe; "": its kind's section.
        find: finds components chosen by name. None: this is not supported.
    """
    place = place or config.kind
    known = {item.name for item in fields(config)}
    held = {key: component_field(annotation) for key, annotation in hints(type(config)).items()}
    fitting: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        name, _, inner_key = key.partition(".")
        if name in known and held.get(name) is not None:
            inside.setdefault(name, {})[inner_key] = value
            continue
        if key not in known:
            raise GenerationError(
                f"{place}.{key}",
                f"is not a key of this model's {place.replace('.', ' ')}",
                close_match(key, known),
            )
        now = getattr(config, key)
        fitting[key] = _fitting(value, hints(type(config))[key], f"{place}.{key}", now)
    for name, given in inside.items():
        field = held[name]
        assert field is not None
        change = _Change(field, find, hints(type(config))[name])
        fitting[name] = change.of(getattr(config, name), given, f"{place}.{name}")
    changed = replace(config, **fitting)
    if name := chosen_name(config):
        choose(changed, name)
    check_config(changed, place)
    return changed


def _fitting(value: Any, annotation: Any, place: str, now: Any = MISSING) -> Any:
    """The value that fits. `now`: the key's present one, for the error; `MISSING`: none."""
    try:
        return fit(value, annotation)
    except WrongTypeError:
        raise GenerationError(
            place,
            f"is {value!r}, must be {in_words(annotation)}",
            correction(place, value, annotation, now),
        ) from None


@dataclass(frozen=True)
class _Change:
    """Changes a field that holds components, like a layer of a recipe.

    Args:
        field: its description.
        find: finds components by name; None: they can't be named.
        annotation: the field's.
    """

    field: ComponentField
    find: Find | None
    annotation: Any

    def of(self, current: Any, given: Mapping[str, Any], place: str) -> Any:
        """The field's new value. `given`: the rest of each key after the field's key and a dot -> value, "" for the
        field itself."""
        whole = given.get("", _NOTHING)
        if whole is None and self.field.optional:
            return None
        if self.field.form == "one":
            return self._one(current, given, place)
        parts: dict[str, dict[str, Any]] = {}
        if self.field.form == "list":
            if whole is not _NOTHING:
                if not isinstance(whole, (list, tuple)):
                    _fitting(whole, self.annotation, place)
                current = [None] * len(whole)
                parts = {str(number): {"": item} for number, item in enumerate(whole)}
            items = {str(number): item for number, item in enumerate(current or [])}
        else:
            if not isinstance(whole, Mapping):
                _fitting(whole, self.annotation, place)
            parts = {name: {"": item} for name, item in whole.items()}
            items = dict(current or {})
        for key, value in given.items():
            name, _, inner_key = key.partition(".")
            if key:
                parts.setdefault(name, {})[inner_key] = value
        for name, own in parts.items():
            here = f"{place}.{name}"
            if self.field.form == "list" and name not in items:
                raise GenerationError(here, "is not there", close_match(name, items))
            if self.field.form == "dict" and own == {"": None}:
                items.pop(name, None)
            else:
                items[name] = self._one(items.get(name), own, here)
        return list(items.values()) if self.field.form == "list" else items

    def _one(
        self, current: ComponentConfig | None, given: Mapping[str, Any], place: str
    ) -> ComponentConfig:
        whole, inner = given.get(""), {key: value for key, value in given.items() if key}
        if isinstance(whole, Mapping):
            inner = {**{key: value for key, value in whole.items() if key != "name"}, **inner}
            whole = whole.get("name")
        if isinstance(whole, ComponentConfig) and whole.kind == self.field.kind:
            current = whole
        elif whole is not None or ("" in given and current is None):
            if self.find is None or not isinstance(whole, str):
                raise GenerationError(
                    place,
                    f"is {whole!r}, not {self.field.kind}",
                    f"write {place}=NAME (cm3 kinds {self.field.kind})",
                )
            current = _another(current, self.field, whole, self.find, inner, place)
        if current is None:
            raise GenerationError(
                place,
                f"is not given, but its keys are; the {self.field.kind} is unknown",
                f"name it: {place}=NAME",
            )
        return with_options(current, inner, place, self.find)


def _another(
    config: ComponentConfig | None,
    field: ComponentField,
    name: str,
    find: Find,
    given: Mapping[str, Any],
    place: str,
) -> ComponentConfig:
    """The named component, to replace another one; the same component if it has the same class.
    `given`: its keys that are given together with the name."""
    config_class = find(field.kind, name, place)
    if type(config) is config_class:
        chosen = replace(config)
    elif field.kind == "sampler":
        first = cast("SamplerConfig | None", config)
        own = "" if first is None else chosen_name(first)
        chosen = in_place_of(first, cast("type[SamplerConfig]", config_class), own, given, place)
    else:
        chosen = named_config(config_class, {}, place, given)
    choose(chosen, name)
    return chosen
