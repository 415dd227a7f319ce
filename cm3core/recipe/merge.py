"""Layers -> recipe.

Each layer is merged separately, so that anything wrong with it is reported with its file and key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3core.arguments import checked
from cm3core.config.component_fields import component_field
from cm3core.config.schema import hints, make
from cm3core.errors import PluginError, RecipeError, close_match
from cm3core.plugins.providers import ANYONE, Writer
from cm3core.plugins.registry import KINDS, Registry
from cm3core.recipe import library
from cm3core.recipe.choosing import Choice, Section, chosen
from cm3core.recipe.layers import COMMAND_LINE, Layer, file_layers, override_layer, parse
from cm3core.recipe.missing import MissingComponent
from cm3core.recipe.recipe import Recipe
from cm3core.recipe.resolve import resolve, with_defaults
from cm3core.recipe.sections import FIXED_SECTIONS
from cm3core.recipe.values import wrong_type

#: A recipe's name: the default run folder and other paths are made of it.
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")


@checked(RecipeError)
def compose(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    registry: Registry,
    beneath: Layer | None = None,
) -> Recipe:
    """Compose the recipe of a shipped name or a file, with the command line's overrides.

    Args:
        name_or_path: "cm3leon-350m", or a path ("./mine.yaml").
        overrides: `section.key=value` in any order; `kind=name` changes a component, `kind=null`
            removes it.
        registry: the components that recipes may name.
        beneath: a layer under those of the recipe.

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
    under = [] if beneath is None else [beneath]
    return _compose(
        path.stem, [*under, *layers, override_layer(overrides, registry.kinds)], registry
    )


@checked(RecipeError)
def recipe_from_yaml(text: str, registry: Registry, *, label: str = "recipe.yaml") -> Recipe:
    """Return the recipe that `Recipe.to_yaml` wrote; `label` names the text in errors."""
    return _compose(Path(label).stem, [_resolved_layer(text, label, ANYONE)], registry)


def stored_recipe(
    text: str, registry: Registry, *, label: str, writer: Writer, lenient: bool = False
) -> Recipe:
    """Return the recipe that was stored with a run, a model or a bank.

    Args:
        text: what `Recipe.to_yaml` wrote.
        registry: the components that are available now.
        label: names the text in errors.
        writer: whom a bare name means in it.
        lenient: let a component that can't be had be an error only for what needs it, see
            `MissingComponent`.
    """
    layer = _resolved_layer(text, label, writer)
    return _compose(Path(label).stem, [layer], registry, lenient=lenient)


def _resolved_layer(text: str, label: str, writer: Writer) -> Layer:
    values = parse(text, label)
    if "extends" in values:
        raise RecipeError(
            f"{label}: extends", "a resolved recipe extends nothing", "compose it from its file"
        )
    return Layer(label, values, writer)


def _compose(
    name: str, layers: Sequence[Layer], registry: Registry, *, lenient: bool = False
) -> Recipe:
    sections = {key: Section(config_class) for key, config_class in FIXED_SECTIONS.items()}
    choices: dict[str, list[Choice]] = {}
    missing: dict[str, MissingComponent] = {}
    own = max(position for position, layer in enumerate(layers) if layer.label != COMMAND_LINE)
    for position, layer in enumerate(layers):
        values = dict(layer.values)
        stated = values.pop("name", None)
        if stated is not None and not isinstance(stated, str):
            raise wrong_type(f"{layer.label}: name", stated, "str")
        if stated is not None:
            _check_name(f"{layer.label}: name", stated, "write a plain name")
        if position == own:
            # the recipe's own, not that of one it extends
            name = name if stated is None else stated
        for section, given in values.items():
            unknown = section not in registry.kinds and section not in FIXED_SECTIONS
            if lenient and unknown and layer.writer.providers.get(section):
                missing[section] = _of_missing_kind(layer, section, given, registry)
                continue
            if section in registry.kinds and given is None:
                choices.pop(section, None)
                continue
            keys = _keys(layer.label, section, given, registry)
            if section in registry.kinds:
                choice = Choice.of(layer, section, keys, registry)
                choices.setdefault(section, []).append(choice)
            else:
                _merge_fixed(sections[section], layer, section, keys, registry, lenient)
    for kind in (kind for kind in registry.kinds if kind in choices):
        try:
            sections[kind] = chosen(choices[kind], registry)
        except PluginError as error:
            if not lenient:
                raise
            missing[kind] = MissingComponent.of(choices[kind][-1], error)
    return _finish(name, sections, missing, registry)


def _merge_fixed(
    section: Section,
    layer: Layer,
    name: str,
    keys: dict[str, Any],
    registry: Registry,
    lenient: bool,
) -> None:
    """Merge a fixed section's keys. With `lenient`, components in it that can't be had are left out: they
    were of the training that a stored recipe tells of."""
    try:
        section.merge(layer, name, keys, registry)
    except PluginError:
        holding = hints(FIXED_SECTIONS[name])
        others = {key: own for key, own in keys.items() if not component_field(holding.get(key))}
        if not lenient or len(others) == len(keys):
            raise
        section.merge(layer, name, others, registry)


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


def _of_missing_kind(
    layer: Layer, section: str, given: object, registry: Registry
) -> MissingComponent:
    """What stands for a stored section of a kind that no plugin in use brings."""
    keys = dict(given) if isinstance(given, dict) else {"name": given}
    error = PluginError(
        f"{layer.label}: {section}",
        f"the kind {section!r} is of a plugin that is not in use; its component was brought by "
        f"{layer.writer.providers[section]}",
        registry.with_reasons("install it, or enable it, and repeat the command"),
    )
    return MissingComponent(str(keys.pop("name", "")), keys, error)


def _keys(label: str, section: str, given: object, registry: Registry) -> dict[str, Any]:
    """Return what a layer says of a section: key -> value."""
    place = f"{label}: {section}"
    kinds = registry.kinds
    if section not in kinds and section not in FIXED_SECTIONS:
        step = close_match(section, [*kinds, *FIXED_SECTIONS, "extends", "name"])
        if not step.startswith("did you mean"):
            step = registry.with_reasons(step)  # it may be the kind of a plugin that is not in use
        raise RecipeError(place, "is not a section of a recipe", step)
    if section in kinds and isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise wrong_type(place, given, "a mapping of keys to values")
    return given


def _finish(
    name: str,
    sections: dict[str, Section],
    missing: dict[str, MissingComponent],
    registry: Registry,
) -> Recipe:
    """Add defaults, resolve interpolations, and make the dataclasses."""
    plain: dict[str, dict[str, Any]] = {}
    classes: dict[str, type[Any]] = {}
    lacking: list[str] = []
    origins: dict[str, str] = {}
    for section in (*registry.kinds, *FIXED_SECTIONS):
        if (current := sections.get(section)) is not None and current.config_class is not None:
            origins |= current.origins
            classes[section] = current.config_class
            plain[section] = with_defaults(
                (section,), current.config_class, current.values, None, lacking, origins, registry
            )
    if lacking:
        raise RecipeError(
            f"recipe {name!r}",
            f"lacks {'a value' if len(lacking) == 1 else 'values'} for {', '.join(lacking)}",
            f"give {'it' if len(lacking) == 1 else 'them'} in the recipe or in the command, e.g. cm3 "
            "train RECIPE " + " ".join(f"{key}=..." for key in lacking),
        )
    resolved = resolve(plain, classes, origins)
    configs: dict[str, Any] = {
        section: make(classes[section], values) for section, values in resolved.items()
    }
    names = {
        kind: missing[kind].name if kind in missing else str(sections[kind].component)
        for kind in (*registry.kinds, *missing)
        if kind in missing or kind in sections
    }
    configs |= missing
    own = {*KINDS, *FIXED_SECTIONS}
    brought = {kind: configs.pop(kind) for kind in list(configs) if kind not in own}
    return Recipe(
        name=name,
        component_names=names,
        origins=_ordered(origins, resolved),
        brought=brought,
        **configs,
    )


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
