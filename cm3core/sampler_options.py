"""A sampler's keys changed for one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from cm3core.errors import GenerationError, close_match
from cm3core.fields import WrongTypeError, fit, hints

if TYPE_CHECKING:
    from cm3core.interfaces.sampler import SamplerConfig


def with_options(config: SamplerConfig, options: Mapping[str, Any]) -> SamplerConfig:
    """A sampler's config with some keys changed, checked as a recipe would be."""
    known = {item.name for item in fields(config)}
    fitting = {}
    for key, value in options.items():
        if key not in known:
            raise GenerationError(f"sampler.{key}", "is not a key of this model's sampler", close_match(key, known))
        try:
            fitting[key] = fit(value, hints(type(config))[key])
        except WrongTypeError as error:
            raise GenerationError(f"sampler.{key}", f"is {value!r}, not {error.expected}", "correct the value") from None
    changed = replace(config, **fitting)
    changed.check()
    return changed
