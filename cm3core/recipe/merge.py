"""Layers -> recipe.

Each layer is merged separately, so that anything wrong with it is reported with its file and key.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cm3core.config.schema import is_interpolation, make
from cm3core.errors import RecipeError, close_match
from cm3core.plugins.registry import KINDS, Registry
from cm3core.recipe import library
from cm3core.recipe.layers import COMMAND_LINE, Layer, file_layers, override_layer, parse
from cm3core.recipe.recipe import Recipe
from cm3core.recipe.resolve import Section, resolve, with_defaults
from cm3core.recipe.sections import FIXED_SECTIONS
from cm3core.recipe.values import Place, forget, merge_values, wrong_type

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


def _compose(name: str, layers: Sequence[Layer], registry: Registry) -> Recipe:
    sections = {key: Section(config_class) for key, config_class in FIXED_SECTIONS.items()}
    origins: dict[str, str] = {}
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
            _merge_section(layer.label, section, given, sections, origins, registry)
    return _finish(name, sections, origins, registry)


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
    sections: dict[str, Section],
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
        forget(section, origins)
        return
    if section in KINDS and isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise wrong_type(place, given, "a mapping of keys to values")
    given = dict(given)
    if section in KINDS:
        _choose_component(label, section, given.pop("name", None), sections, origins, registry)
    current = sections[section]
    owner = (
        f"the {section} {current.component!r}" if current.component else f"the section {section!r}"
    )
    merge_values(
        Place(label, (section,), owner, origins, registry),
        given,
        current.config_class,
        current.values,
    )


def _choose_component(
    label: str,
    kind: str,
    name: object,
    sections: dict[str, Section],
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
        raise wrong_type(
            place, name, f"the name of a component ({', '.join(registry.names(kind))})"
        )
    config_class = registry.config_class(kind, name, place=place)
    if kind not in sections or sections[kind].config_class is not config_class:
        forget(kind, origins)
        sections[kind] = Section(config_class)
    sections[kind].component = name
    origins[f"{kind}.name"] = label


def _finish(
    name: str, sections: dict[str, Section], origins: dict[str, str], registry: Registry
) -> Recipe:
    """Add defaults, resolve interpolations, and make the dataclasses."""
    plain: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for section in (*KINDS, *FIXED_SECTIONS):
        if section in sections:
            current = sections[section]
            plain[section] = with_defaults(
                (section,), current.config_class, current.values, None, missing, origins, registry
            )
    if missing:
        raise RecipeError(
            f"recipe {name!r}",
            f"lacks {'a value' if len(missing) == 1 else 'values'} for {', '.join(missing)}",
            f"give {'it' if len(missing) == 1 else 'them'} in the recipe or in the command, e.g. cm3 "
            "train RECIPE " + " ".join(f"{key}=..." for key in missing),
        )
    resolved = resolve(plain, sections, origins, registry)
    configs = {
        section: make(sections[section].config_class, values)
        for section, values in resolved.items()
    }
    names = {kind: str(sections[kind].component) for kind in KINDS if kind in sections}
    return Recipe(name=name, component_names=names, origins=_ordered(origins, resolved), **configs)


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
