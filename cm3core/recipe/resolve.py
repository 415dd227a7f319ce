"""Merged layers -> complete values: defaults, interpolations, and the components that fields hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.config.component_fields import ComponentField, component_field, components_in
from cm3core.config.schema import (
    WrongTypeError,
    default,
    fit,
    hints,
    init_fields,
    make,
    nested_dataclass,
    shown_type,
    to_plain,
)
from cm3core.errors import RecipeError
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name
from cm3core.plugins.registry import Registry
from cm3core.recipe.values import ComponentValues

DEFAULT = "default"


def with_defaults(
    path: tuple[str, ...],
    config_class: type[Any],
    given: dict[str, Any],
    instance: object,
    lacking: list[str],
    origins: dict[str, str],
    registry: Registry,
) -> dict[str, Any]:
    """Return every key of the dataclass, in its order.

    Keys that are not given and have no default are added to `lacking`. Defaults are those of
    `instance` (the outer dataclass's default for a nested one), or the class's if it is None."""
    complete: dict[str, Any] = {}
    annotations = hints(config_class)
    for item in init_fields(config_class):
        here = (*path, item.name)
        inner = nested_dataclass(annotations[item.name])
        start = default(item) if instance is None else getattr(instance, item.name)
        nested = start if inner is not None and isinstance(start, inner) else None
        components = component_field(annotations[item.name])
        if components is not None and item.name in given:
            complete[item.name] = _complete(
                here, components, given[item.name], lacking, origins, registry
            )
        elif inner is not None and (
            isinstance(given.get(item.name), dict)
            or (nested is not None and item.name not in given)
        ):
            complete[item.name] = with_defaults(
                here, inner, given.get(item.name, {}), nested, lacking, origins, registry
            )
        elif item.name in given:
            complete[item.name] = given[item.name]
        elif start is MISSING:
            lacking.append(".".join(here))
        else:
            _name_defaults(start, registry)
            complete[item.name] = _plain(start)
            origins.setdefault(".".join(here), DEFAULT)
    return complete


def _complete(
    path: tuple[str, ...],
    wanted: ComponentField,
    given: Any,
    lacking: list[str],
    origins: dict[str, str],
    registry: Registry,
) -> Any:
    """Return the components of a field with all of their keys."""

    def one(where: tuple[str, ...], values: ComponentValues) -> ComponentValues:
        keys = {key: value for key, value in values.items() if key != "name"}
        complete = with_defaults(where, values.config_class, keys, None, lacking, origins, registry)
        return ComponentValues(values.config_class, {"name": values["name"], **complete})

    if given is None:
        return None
    if wanted.form == "one":
        return one(path, given)
    if wanted.form == "list":
        return [one((*path, str(number)), item) for number, item in enumerate(given)]
    return {name: one((*path, name), item) for name, item in given.items()}


def _plain(value: Any) -> Any:
    """Return a default as `to_plain` does, with the classes of the components in it."""
    if is_dataclass(value) and not isinstance(value, type):
        keys = {item.name: _plain(getattr(value, item.name)) for item in init_fields(type(value))}
        if not isinstance(value, ComponentConfig):
            return keys
        return ComponentValues(type(value), {"name": chosen_name(value), **keys})
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _name_defaults(start: Any, registry: Registry) -> None:
    """Give components that are a field's default the names by which recipes know them."""
    for _, config in components_in(start):
        for name in registry.names(config.kind):
            owners = registry.owners(config.kind, name)
            for owner in owners:
                if registry.config_class(config.kind, f"{owner}/{name}") is type(config):
                    choose(config, name if len(owners) == 1 else f"{owner}/{name}")


def resolve(
    plain: dict[str, dict[str, Any]],
    config_classes: Mapping[str, type[Any]],
    origins: dict[str, str],
) -> dict[str, dict[str, Any]]:
    """Replace each `${section.key}` by its value, and check that against the field it is in.

    Args:
        plain: section -> its values.
        config_classes: section -> its dataclass.
        origins: key -> the layer that gave it, for errors.
    """
    tree = OmegaConf.create(to_plain(plain))  # it takes no `ComponentValues`
    resolved: dict[str, dict[str, Any]] = {}
    for section, values in plain.items():
        resolved[section] = {}
        for key, annotation in hints(config_classes[section]).items():
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
    components = component_field(annotation)
    if components is not None and value is not None:
        return _components(value, components, place, written)
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


def _components(value: Any, wanted: ComponentField, place: str, written: Any) -> Any:
    """Return the configs of the components that a field holds."""

    def one(values: dict[str, Any], place: str, written: ComponentValues) -> ComponentConfig:
        config: ComponentConfig = make(
            written.config_class,
            {
                key: _fit_resolved(values[key], item, f"{place}.{key}", written[key])
                for key, item in hints(written.config_class).items()
            },
        )
        choose(config, values["name"])
        return config

    if wanted.form == "one":
        return one(value, place, written)
    if wanted.form == "list":
        return [
            one(item, f"{place}.{number}", written[number]) for number, item in enumerate(value)
        ]
    return {name: one(item, f"{place}.{name}", written[name]) for name, item in value.items()}
