"""Change a component's keys for one call, or replace the sampler by another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cm3core.config.component_fields import component_field
from cm3core.config.components import check_config
from cm3core.config.schema import WrongTypeError, fit, hints
from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import SamplerConfig

C = TypeVar("C", bound=ComponentConfig)
#: Keys that carry over to another sampler: filters after the mixing suit the model, whatever is
#: mixed. Guidance scales and plausible sets don't.
CARRIED = tuple(
    prefix + key
    for prefix in ("", "text_")
    for key in ("temperature", "top_k", "top_p", "min_p", "typical_p")
)


def in_place_of(
    config: SamplerConfig | None, other: type[SamplerConfig], name: str = ""
) -> SamplerConfig:
    """Return another sampler's config, with the first one's filters where both have them.

    A sampler that wraps one other wraps the first one, whose name is `name`. All other keys have
    the other sampler's defaults."""
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
    return other(**kept)


def with_options(config: C, options: Mapping[str, Any], place: str = "") -> C:
    """Return a component's config with some keys changed, checked as a recipe would be.

    Args:
        config: stays as it is.
        options: key -> value; a key of a component in it is dotted ("inner.temperature").
        place: where it is in the recipe; "": its kind's section.
    """
    place = place or config.kind
    known = {item.name for item in fields(config)}
    fitting: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        name, dot, inner_key = key.partition(".")
        if dot and isinstance(getattr(config, name, None), ComponentConfig):
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
        fitting[name] = with_options(getattr(config, name), changes, f"{place}.{name}")
    changed = replace(config, **fitting)
    if name := chosen_name(config):
        choose(changed, name)
    check_config(changed, place)
    return changed
