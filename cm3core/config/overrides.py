"""Change a component's keys for one call, or replace the sampler by another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from cm3core.config.component_fields import ComponentField, component_field
from cm3core.config.components import check_config
from cm3core.config.schema import WrongTypeError, fit, hints
from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import SamplerConfig

C = TypeVar("C", bound=ComponentConfig)
#: Finds the config class of a component, by its kind, its name and the key that names it.
Find: TypeAlias = Callable[[str, str, str], type[ComponentConfig]]
_NOTHING: Mapping[str, Any] = MappingProxyType({})
#: Keys that carry over to another sampler: filters after the mixing suit the model, whatever is
#: mixed. Guidance scales and plausible sets don't.
CARRIED = tuple(
    prefix + key
    for prefix in ("", "text_")
    for key in ("temperature", "top_k", "top_p", "min_p", "typical_p")
)


def named_config(
    config_class: type[C],
    values: Mapping[str, Any],
    place: str,
    given: Mapping[str, Any] = _NOTHING,
) -> C:
    """Return the config of a component that is named for one call, which no recipe describes.

    Args:
        config_class: the component's.
        values: of its keys; the others have their defaults.
        place: where it is in the recipe.
        given: the keys that are given with the name: those without a default are taken from it, unchecked.

    Raises:
        GenerationError: a key has no default, and is not given.
    """
    for item in fields(config_class):
        if item.name in values or not item.init:
            continue
        if item.default is MISSING and item.default_factory is MISSING:
            if item.name not in given:
                raise GenerationError(
                    f"{place}.{item.name}",
                    f"is not given, and {config_class.__name__} has no default for it",
                    f"give it where you can, or name another {config_class.kind}",
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
    """Return another sampler's config, with the first one's filters where both have them.

    A sampler that wraps one other wraps the first one, whose name is `name`. All other keys have
    the other sampler's defaults; those without one are taken from `given`, unchecked.

    Raises:
        GenerationError: such a key is not given.
    """
    mine = set() if config is None else {item.name for item in fields(config)}
    theirs = {item.name for item in fields(other)}
    kept = {key: getattr(config, key) for key in CARRIED if key in mine & theirs}
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
    """Return a component's config with some keys changed, checked as a recipe would be.

    Args:
        config: stays as it is.
        options: key -> value; a key of a component in it is dotted ("inner.temperature"), and the
            component itself is chosen by its name ("inner").
        place: where it is in the recipe; "": its kind's section.
        find: finds components that are chosen so. None: none can be.
    """
    place = place or config.kind
    known = {item.name for item in fields(config)}
    named = {} if find is None else _named_components(config, options)
    fitting: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {name: {} for name in named}
    for key, value in options.items():
        name, dot, inner_key = key.partition(".")
        if key in named:
            continue
        if dot and (name in named or isinstance(getattr(config, name, None), ComponentConfig)):
            deeper.setdefault(name, {})[inner_key] = value
            continue
        if key not in known:
            raise GenerationError(
                f"{place}.{key}",
                f"is not a key of this model's {place.replace('.', ' ')}",
                close_match(key, known),
            )
        try:
            fitting[key] = fit(value, hints(type(config))[key])
        except WrongTypeError as error:
            raise GenerationError(
                f"{place}.{key}", f"is {value!r}, not {error.expected}", "correct the value"
            ) from None
    for name, changes in deeper.items():
        inner, here = getattr(config, name), f"{place}.{name}"
        if find is not None and name in named:
            inner = _another(inner, named[name], options[name], find, changes, here)
        fitting[name] = with_options(inner, changes, here, find)
    changed = replace(config, **fitting)
    if name := chosen_name(config):
        choose(changed, name)
    check_config(changed, place)
    return changed


def _named_components(
    config: ComponentConfig, options: Mapping[str, Any]
) -> dict[str, ComponentField]:
    """The keys that hold one component and are given the name of one."""
    held = {key: component_field(annotation) for key, annotation in hints(type(config)).items()}
    return {
        key: field
        for key, field in held.items()
        if field is not None and field.form == "one" and isinstance(options.get(key), str)
    }


def _another(
    config: ComponentConfig | None,
    field: ComponentField,
    name: str,
    find: Find,
    given: Mapping[str, Any],
    place: str,
) -> ComponentConfig:
    """The component of a name in the place of another one, which it is if that is of the same class;
    `given`: keys of it that are given with the name."""
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
