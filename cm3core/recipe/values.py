"""Keys of one layer over those of earlier layers: each is checked against the section's
dataclass."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from cm3core.config.schema import WrongTypeError, fit, hints, nested_dataclass, shown_type
from cm3core.errors import RecipeError, close_match

logger = logging.getLogger("cm3core.recipe")

#: OmegaConf's way to write "this must still be given".
MANDATORY = "???"


def merge_values(
    label: str,
    path: tuple[str, ...],
    given: dict[str, Any],
    config_class: type[Any],
    into: dict[str, Any],
    owner: str,
    origins: dict[str, str],
) -> None:
    """Merge a layer's keys over those of earlier layers, checking each against the dataclass."""
    annotations = hints(config_class)
    for key, value in _with_new_names(label, path, given, config_class).items():
        dotted = ".".join((*path, key))
        place = f"{label}: {dotted}"
        if key not in annotations:
            raise RecipeError(place, f"{owner} has no key {key!r}", close_match(key, annotations))
        inner = nested_dataclass(annotations[key])
        if inner is not None and isinstance(value, dict):
            if not isinstance(into.get(key), dict):
                into[key] = {}
            merge_values(label, (*path, key), value, inner, into[key], f"{owner}, {key},", origins)
            continue
        if value == MANDATORY:
            into.pop(key, None)
            continue
        try:
            fitting = fit(value, annotations[key])
        except WrongTypeError as error:
            raise wrong_type(place, value, shown_type(annotations[key]), error) from error
        merged = (
            {**into[key], **fitting}
            if isinstance(fitting, dict) and isinstance(into.get(key), dict)
            else fitting
        )
        forget(dotted, origins)
        into[key], origins[dotted] = merged, label


def _with_new_names(
    label: str, path: tuple[str, ...], given: dict[str, Any], config_class: type[Any]
) -> dict[str, Any]:
    """Return a layer's keys with renamed ones under their present names; warn of each."""
    renamed: Mapping[str, str] = getattr(config_class, "renamed", {})
    for old in [key for key in given if key in renamed]:
        place, new = f"{label}: {'.'.join((*path, old))}", renamed[old]
        if new in given:
            raise RecipeError(place, f"is the old name of {new!r}, which is given too", "remove it")
        logger.warning(
            "%s: the key is now called %r: use that, the old name will be removed", place, new
        )
        given = {renamed[old] if key == old else key: value for key, value in given.items()}
    return given


def wrong_type(
    place: str, value: object, expected: str, error: WrongTypeError | None = None
) -> RecipeError:
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
    """Remove the origins of a section's keys."""
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]
