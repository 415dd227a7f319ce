"""Layers -> recipe.

Each layer is merged separately, so that anything wrong with it is reported with its file and key.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.config.schema import (
    WrongTypeError,
    default,
    fit,
    hints,
    init_fields,
    is_interpolation,
    make,
    nested_dataclass,
    shown_type,
    to_plain,
)
from cm3core.errors import RecipeError, close_match
from cm3core.plugins.registry import KINDS, Registry
from cm3core.recipe import library
from cm3core.recipe.layers import COMMAND_LINE, Layer, file_layers, override_layer, parse
from cm3core.recipe.recipe import Recipe
from cm3core.recipe.sections import FIXED_SECTIONS

logger = logging.getLogger("cm3core.recipe")

DEFAULT = "default"
#: OmegaConf's way to write "this must still be given".
MANDATORY = "???"
#: A recipe's name: the default run folder and other paths are made of it.
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")


def compose(name_or_path: str, overrides: Sequence[str] = (), *, registry: Registry) -> Recipe:
    """Compose the recipe of a shipped name or a file, with the command line's overrides.

    Args:
        name_or_path: "cm3leon-350m", or a path ("./mine.yaml").
        overrides: `section.key=value` in any order; `kind=name` changes a component, `kind=null`
            removes it.
        registry: the components that recipes may name.

    Returns:
        The recipe, complete and typed. `Recipe.check` checks whether its values make sense
        together.

    Raises:
        RecipeError: anything in a layer is unknown, of the wrong type, missing or unresolvable.
        PluginError: a component is unknown, or several plugins provide it.
    """
    path = library.find(name_or_path)
    layers = file_layers(path)
    if layers[-1].values.get("name") is None:
        _check_name(
            f"{layers[-1].label}: name",
            path.stem,
            "add a plain name (name: mine), or rename the file",
        )
    return _compose(path.stem, [*layers, override_layer(overrides)], registry)


def recipe_from_yaml(text: str, registry: Registry, *, label: str = "recipe.yaml") -> Recipe:
    """Return the recipe that `Recipe.to_yaml` wrote; `label` names the text in errors."""
    values = parse(text, label)
    if "extends" in values:
        raise RecipeError(
            f"{label}: extends", "a resolved recipe extends nothing", "compose it from its file"
        )
    return _compose(Path(label).stem, [Layer(label, values)], registry)


@dataclass
class _Section:
    """A section while layers are merged into it: its dataclass, component name and given values.

    The component's name is None in fixed sections."""

    config_class: type[Any]
    component: str | None = None
    values: dict[str, Any] = field(default_factory=dict)


def _compose(name: str, layers: Sequence[Layer], registry: Registry) -> Recipe:
    sections = {key: _Section(config_class) for key, config_class in FIXED_SECTIONS.items()}
    origins: dict[str, str] = {}
    own = max(position for position, layer in enumerate(layers) if layer.label != COMMAND_LINE)
    for position, layer in enumerate(layers):
        values = dict(layer.values)
        stated = values.pop("name", None)
        if stated is not None and not isinstance(stated, str):
            raise _wrong_type(f"{layer.label}: name", stated, "str")
        if stated is not None:
            _check_name(f"{layer.label}: name", stated, "write a plain name")
        if position == own:
            # the recipe's own, not that of one it extends
            name = name if stated is None else stated
        for section, given in values.items():
            _merge_section(layer.label, section, given, sections, origins, registry)
    return _finish(name, sections, origins)


def _check_name(place: str, name: str, next_step: str) -> None:
    """Refuse a recipe's name that would lead elsewhere, or nowhere, as part of a path."""
    if not _PLAIN_NAME.fullmatch(name):
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise RecipeError(
            place,
            f"is {shown!r}, must be 1 to 100 letters, digits, '_', '-' and '.', not starting "
            "with '.'",
            next_step,
        )


def _merge_section(
    label: str,
    section: str,
    given: object,
    sections: dict[str, _Section],
    origins: dict[str, str],
    registry: Registry,
) -> None:
    """Merge one section of one layer.

    A changed component name replaces the section; otherwise keys are merged."""
    place = f"{label}: {section}"
    if section not in KINDS and section not in FIXED_SECTIONS:
        raise RecipeError(
            place,
            "is not a section of a recipe",
            close_match(section, [*KINDS, *FIXED_SECTIONS, "extends", "name"]),
        )
    if section in KINDS and given is None:
        sections.pop(section, None)
        _forget(section, origins)
        return
    if section in KINDS and isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise _wrong_type(place, given, "a mapping of keys to values")
    given = dict(given)
    if section in KINDS:
        _choose_component(label, section, given.pop("name", None), sections, origins, registry)
    current = sections[section]
    owner = (
        f"the {section} {current.component!r}" if current.component else f"the section {section!r}"
    )
    _merge_values(label, (section,), given, current.config_class, current.values, owner, origins)


def _choose_component(
    label: str,
    kind: str,
    name: object,
    sections: dict[str, _Section],
    origins: dict[str, str],
    registry: Registry,
) -> None:
    place = f"{label}: {kind}.name"
    if name is None:
        if kind not in sections:
            raise RecipeError(
                place,
                "is missing: no layer before this one chose a component",
                f"name one: {', '.join(registry.names(kind))}",
            )
        return
    if not isinstance(name, str) or is_interpolation(name):
        raise _wrong_type(
            place, name, f"the name of a component ({', '.join(registry.names(kind))})"
        )
    config_class = registry.config_class(kind, name, place=place)
    if kind not in sections or sections[kind].config_class is not config_class:
        _forget(kind, origins)
        sections[kind] = _Section(config_class)
    sections[kind].component = name
    origins[f"{kind}.name"] = label


def _forget(section: str, origins: dict[str, str]) -> None:
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]


def _merge_values(
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
            _merge_values(label, (*path, key), value, inner, into[key], f"{owner}, {key},", origins)
            continue
        if value == MANDATORY:
            into.pop(key, None)
            continue
        try:
            fitting = fit(value, annotations[key])
        except WrongTypeError as error:
            raise _wrong_type(place, value, shown_type(annotations[key]), error) from error
        merged = (
            {**into[key], **fitting}
            if isinstance(fitting, dict) and isinstance(into.get(key), dict)
            else fitting
        )
        _forget(dotted, origins)
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


def _wrong_type(
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


def _finish(name: str, sections: dict[str, _Section], origins: dict[str, str]) -> Recipe:
    """Add defaults, resolve interpolations, and make the dataclasses."""
    plain: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for section in (*KINDS, *FIXED_SECTIONS):
        if section in sections:
            current = sections[section]
            plain[section] = _with_defaults(
                (section,), current.config_class, current.values, None, missing, origins
            )
    if missing:
        raise RecipeError(
            f"recipe {name!r}",
            f"lacks {'a value' if len(missing) == 1 else 'values'} for {', '.join(missing)}",
            f"give {'it' if len(missing) == 1 else 'them'} in the recipe or in the command, e.g. cm3 "
            "train RECIPE " + " ".join(f"{key}=..." for key in missing),
        )
    resolved = _resolve(plain, sections, origins)
    configs = {
        section: make(sections[section].config_class, values)
        for section, values in resolved.items()
    }
    names = {kind: str(sections[kind].component) for kind in KINDS if kind in sections}
    return Recipe(name=name, component_names=names, origins=_ordered(origins, resolved), **configs)


def _with_defaults(
    path: tuple[str, ...],
    config_class: type[Any],
    given: dict[str, Any],
    instance: object,
    missing: list[str],
    origins: dict[str, str],
) -> dict[str, Any]:
    """Return every key of the dataclass, in its order.

    Keys that are not given and have no default are added to `missing`. Defaults are those of
    `instance` (the outer dataclass's default for a nested one), or the class's if it is None."""
    complete: dict[str, Any] = {}
    annotations = hints(config_class)
    for item in init_fields(config_class):
        dotted = ".".join((*path, item.name))
        inner = nested_dataclass(annotations[item.name])
        start = default(item) if instance is None else getattr(instance, item.name)
        nested = start if inner is not None and isinstance(start, inner) else None
        if inner is not None and (
            isinstance(given.get(item.name), dict)
            or (nested is not None and item.name not in given)
        ):
            complete[item.name] = _with_defaults(
                (*path, item.name), inner, given.get(item.name, {}), nested, missing, origins
            )
        elif item.name in given:
            complete[item.name] = given[item.name]
        elif start is MISSING:
            missing.append(dotted)
        else:
            complete[item.name] = to_plain(start)
            origins.setdefault(dotted, DEFAULT)
    return complete


def _resolve(
    plain: dict[str, dict[str, Any]], sections: dict[str, _Section], origins: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Replace each `${section.key}` by its value, and check that against the field it is in."""
    tree = OmegaConf.create(plain)
    resolved: dict[str, dict[str, Any]] = {}
    for section, values in plain.items():
        resolved[section] = {}
        for key, annotation in hints(sections[section].config_class).items():
            place = f"{origins.get(f'{section}.{key}', DEFAULT)}: {section}.{key}"
            try:
                value = _resolved_value(tree, section, key)
            except OmegaConfBaseException as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise RecipeError(
                    place, f"can't be resolved: {first}", "correct the interpolation"
                ) from error
            resolved[section][key] = _fit_resolved(value, annotation, place, values[key])
    return resolved


def _resolved_value(tree: Any, section: str, key: str) -> Any:
    node = tree[section][key]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _fit_resolved(value: Any, annotation: Any, place: str, written: Any) -> Any:
    inner = nested_dataclass(annotation)
    if inner is not None and isinstance(value, dict):
        return {
            key: _fit_resolved(value[key], item, f"{place}.{key}", written)
            for key, item in hints(inner).items()
        }
    try:
        return value if isinstance(value, str) and "${" in value else fit(value, annotation)
    except WrongTypeError as error:
        raise RecipeError(
            place,
            f"is {written!r}, which is {value!r}, expected {shown_type(annotation)}",
            "correct the interpolation",
        ) from error


def _ordered(origins: dict[str, str], resolved: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the origins in the recipe's order, without removed or replaced sections' keys."""
    ordered: dict[str, str] = {}
    for section, values in resolved.items():
        for key in ("name", *values):
            dotted = f"{section}.{key}"
            ordered |= {
                known: layer
                for known, layer in origins.items()
                if known == dotted or known.startswith(f"{dotted}.")
            }
    return ordered
