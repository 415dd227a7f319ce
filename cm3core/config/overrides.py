"""Change a component's keys for one call, or replace the sampler by another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cm3core.config.schema import WrongTypeError, fit, hints
from cm3core.errors import GenerationError, close_match
from cm3core.interfaces.component import ComponentConfig

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


def in_place_of(config: SamplerConfig | None, other: type[SamplerConfig]) -> SamplerConfig:
    """Return another sampler's config, with the first one's filters where both have them.

    All other keys have the other sampler's defaults."""
    mine = set() if config is None else {item.name for item in fields(config)}
    theirs = {item.name for item in fields(other)}
    return other(**{key: getattr(config, key) for key in CARRIED if key in mine & theirs})


def with_options(config: C, options: Mapping[str, Any]) -> C:
    """Return a component's config with some keys changed, checked as a recipe would be."""
    known = {item.name for item in fields(config)}
    fitting = {}
    for key, value in options.items():
        if key not in known:
            raise GenerationError(
                f"{config.kind}.{key}",
                f"is not a key of this model's {config.kind}",
                close_match(key, known),
            )
        try:
            fitting[key] = fit(value, hints(type(config))[key])
        except WrongTypeError as error:
            raise GenerationError(
                f"{config.kind}.{key}", f"is {value!r}, not {error.expected}", "correct the value"
            ) from None
    changed = replace(config, **fitting)
    changed.check()
    return changed
