"""Layers -> recipe.

Each layer is merged separately, so that its errors are reported with its file and key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.arguments import checked
from cm3core.config.schema import (
    SCALARS,
    ComponentField,
    Key,
    WrongTypeError,
    components_in,
    defaults,
    fit,
    init_fields,
    keys_of,
    make,
    to_plain,
)
from cm3core.config.words import in_words, setting
from cm3core.errors import CM3Error, PluginError, RecipeError, close_match
from cm3core.interfaces.component import ComponentConfig, choose, chosen_name
from cm3core.plugins.registry import ANYONE, KINDS, Registry, Writer, moved_to
from cm3core.recipe import forms, library
from cm3core.recipe.forms import MANDATORY
from cm3core.recipe.layers import (
    COMMAND_LINE,
    SWEEP,
    Layer,
    file_layers,
    override_layer,
    parse,
)
from cm3core.recipe.places import with_parts
from cm3core.recipe.recipe import MissingComponent, Recipe
from cm3core.recipe.sections import FIXED_SECTIONS
from cm3core.recipe.values import (
    Choice,
    ComponentValues,
    Section,
    chosen,
    not_a_component,
    wrong_type,
)

# Merged layers -> complete values: defaults, interpolations, and inner components.


DEFAULT = "default"


@dataclass(frozen=True)
class _Completion:
    """Completes sections with all of their keys, and collects missing values.

    Args:
        registry: knows the names under which recipes know a field's default components.
        origins: key -> the layer that set it; "default" is added for keys that no layer set.
        lacking: receives keys that are not set and have no default.
    """

    registry: Registry
    origins: dict[str, str] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def complete(
        self,
        path: tuple[str, ...],
        config_class: type[Any],
        given: dict[str, Any],
        instance: object = None,
    ) -> dict[str, Any]:
        """Return every key of the dataclass, in its order.

        Defaults are those of `instance` (the outer dataclass's default for a nested one), or the class's if it is
        None."""
        complete: dict[str, Any] = {}
        starts = defaults(config_class) if instance is None else {}
        for name, key in keys_of(config_class).items():
            here, inner = (*path, name), key.nested
            start = starts[name] if instance is None else getattr(instance, name)
            nested = start if inner is not None and isinstance(start, inner) else None
            if key.components is not None and name in given:
                complete[name] = self._components(here, key.components, given[name])
            elif inner is not None and (
                isinstance(given.get(name), dict) or (nested is not None and name not in given)
            ):
                complete[name] = self.complete(here, inner, given.get(name, {}), nested)
            elif name in given:
                complete[name] = given[name]
            elif start is MISSING:
                self.lacking.append(".".join(here))
            else:
                _name_defaults(start, self.registry)
                complete[name] = _plain(start)
                self.origins.setdefault(".".join(here), DEFAULT)
        return complete

    def _components(self, path: tuple[str, ...], wanted: ComponentField, given: Any) -> Any:
        """Return the components of a field with all of their keys."""

        def one(where: tuple[str, ...], values: ComponentValues) -> ComponentValues:
            keys = {key: value for key, value in values.items() if key != "name"}
            complete = self.complete(where, values.config_class, keys)
            return ComponentValues(values.config_class, {"name": values["name"], **complete})

        if given is None:
            return None
        if wanted.form == "one":
            return one(path, given)
        if wanted.form == "list":
            return [one((*path, str(number)), item) for number, item in enumerate(given)]
        return {name: one((*path, name), item) for name, item in given.items()}


def _plain(value: Any) -> Any:
    """Convert a default like `to_plain`, keeping the classes of inner components."""
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
    """Give a field's default components the names under which recipes know them."""
    if isinstance(start, SCALARS):
        return
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
    """Replace each `${section.key}` by its value, and check the value against the field.

    Args:
        plain: section -> its values.
        config_classes: section -> its dataclass.
        origins: key -> the layer that set it, for errors.
    """
    tree = OmegaConf.create(to_plain(plain))  # OmegaConf does not accept `ComponentValues`
    resolved: dict[str, dict[str, Any]] = {}
    for section, values in plain.items():
        resolved[section] = {}
        for key, wanted in keys_of(config_classes[section]).items():
            place = f"{origins.get(f'{section}.{key}', DEFAULT)}: {section}.{key}"
            try:
                value = _resolved_value(tree, section, key)
            except OmegaConfBaseException as error:
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise RecipeError(
                    place, f"can't be resolved: {first}", "correct the interpolation"
                ) from error
            resolved[section][key] = _fit_resolved(value, wanted, place, values[key])
    return resolved


def _resolved_value(tree: Any, section: str, key: str) -> Any:
    node = tree[section][key]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _fit_resolved(value: Any, wanted: Key, place: str, written: Any) -> Any:
    if wanted.components is not None and value is not None:
        return _components(value, wanted.components, place, written)
    if wanted.nested is not None and isinstance(value, dict):
        return {
            key: _fit_resolved(value[key], item, f"{place}.{key}", written)
            for key, item in keys_of(wanted.nested).items()
        }
    try:
        return value if isinstance(value, str) and "${" in value else fit(value, wanted.annotation)
    except WrongTypeError as error:
        raise RecipeError(
            place,
            f"is {written!r}, which is {value!r}, must be {in_words(wanted.annotation)}",
            f"write a value, or refer to a key that has {in_words(wanted.annotation)}",
        ) from error


def _components(value: Any, wanted: ComponentField, place: str, written: Any) -> Any:
    """Return the configs of the components in a field."""

    def one(values: dict[str, Any], place: str, written: ComponentValues) -> ComponentConfig:
        config: ComponentConfig = make(
            written.config_class,
            {
                key: _fit_resolved(values[key], item, f"{place}.{key}", written[key])
                for key, item in keys_of(written.config_class).items()
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


#: A recipe's name, which becomes part of the default run folder and other paths.
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")


@checked(RecipeError)
def compose(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    registry: Registry,
    beneath: Layer | None = None,
    trust_endpoints: Sequence[str] = (),
) -> Recipe:
    """Compose a recipe from a shipped name or a file, with the command line's overrides.

    Args:
        name_or_path: "cm3leon-350m", a path ("./mine.yaml"), or "-" for the standard input.
        overrides: `section.key=value` in any order; `kind=name` changes a component, `kind=null` removes it,
            `kind=PLACE` takes a trained part (`cm3core.recipe.places`); `cm3core.recipe.forms` has all forms.
        registry: the components that recipes may name.
        beneath: a layer below those of the recipe.
        trust_endpoints: outside resources that trained parts made by somebody else may use.

    Returns:
        The recipe, complete and typed. `Recipe.check` checks whether its values make sense together.

    Raises:
        RecipeError: a value in a layer is unknown, of the wrong type, missing or unresolvable.
        PluginError: a component is unknown, or several plugins provide it.
        CM3Error: a trained part is not where the recipe says.
    """
    moved = partial(moved_to, registry.plugins, "recipe")
    path = library.find(name_or_path, distribution=moved(name_or_path))
    layers = file_layers(path, moved)
    name = library.STANDARD_INPUT_NAME if path == library.STANDARD_INPUT else path.stem
    if layers[-1].values.get("name") is None:
        _check_name(
            f"{layers[-1].label}: name",
            name,
            "add a plain name (name: mine), or rename the file",
        )
    under = [] if beneath is None else [beneath]

    def composed(arguments: Sequence[str]) -> Recipe:
        own = override_layer(arguments, registry.kinds)
        return _with_parts(name, [*under, *layers, own], registry, trust_endpoints)

    try:
        return composed(overrides)
    except CM3Error as error:
        several = _several_values(name_or_path, overrides, composed, beneath is None)
        if several is None:
            raise
        raise several from error


def _several_values(
    recipe: str,
    overrides: Sequence[str],
    composed: Callable[[Sequence[str]], Recipe],
    sweeps: bool,
) -> RecipeError | None:
    """The error for overrides with several values for a key; None if there are none. `sweeps`: whether `cm3 sweep`
    trains such recipes."""

    def is_valid(arguments: Sequence[str]) -> bool:
        try:
            composed(arguments)
        except CM3Error:
            return False
        return True

    several = forms.swept(overrides, is_valid)
    if not several:
        return None
    choices = forms.alternatives(several[0])
    return RecipeError(
        f"{COMMAND_LINE}: {several[0]}",
        f"has {len(choices)} values, and a recipe has one for each key",
        f"train and evaluate each: cm3 sweep {shlex.join([recipe, *overrides])}"
        if sweeps
        else f"run the command once for each: {shlex.join(choices)}",
    )


@checked(RecipeError)
def compose_values(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    registry: Registry,
    label: str,
    trust_endpoints: Sequence[str] = (),
) -> Recipe:
    """Compose a recipe from values that a command gives itself, with the command line's overrides.

    Args:
        values: section -> its values, as in a recipe file.
        label: the values' name in messages, and the recipe's.
        overrides, registry, trust_endpoints: see `compose`.
    """
    layers = [Layer(label, dict(values)), override_layer(overrides, registry.kinds)]
    return _with_parts(label, layers, registry, trust_endpoints)


def _with_parts(
    name: str, layers: Sequence[Layer], registry: Registry, trust_endpoints: Sequence[str]
) -> Recipe:
    """Compose layers that may name the places of trained parts."""
    name = _own_name(name, layers)
    layers, parts = with_parts(layers, registry, trust_endpoints)
    recipe = _compose(name, layers, registry)
    for part in parts:
        part.guard(recipe)
    return recipe


@checked(RecipeError)
def recipe_from_yaml(
    text: str, registry: Registry, *, label: str = "recipe.yaml", overrides: Sequence[str] = ()
) -> Recipe:
    """Read the output of `Recipe.to_yaml`.

    Args:
        text: the YAML.
        registry: the components that it may name.
        label: names the text in errors.
        overrides: change its values, as in `compose`.
    """
    own = [override_layer(overrides, registry.kinds)] if overrides else []
    layers = [_resolved_layer(text, label, ANYONE), *own]
    return _compose(_own_name(Path(label).stem, layers), layers, registry)


def stored_recipe(
    text: str,
    registry: Registry,
    *,
    label: str,
    writer: Writer,
    lenient: bool = False,
    overrides: Sequence[str] = (),
) -> Recipe:
    """Return the recipe stored with a run, a model or a bank.

    Args:
        text: written by `Recipe.to_yaml`.
        registry: the available components.
        label: names the text in errors.
        writer: resolves its bare names.
        lenient: report an unavailable component only when it is used, see `MissingComponent`.
        overrides: the user's, see `compose`.
    """
    layers = [_resolved_layer(text, label, replace(writer, stored=True))]
    if overrides:
        layers.append(override_layer(overrides, registry.kinds))
    return _compose(_own_name(Path(label).stem, layers), layers, registry, lenient=lenient)


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
    for layer in layers:
        values = {key: value for key, value in layer.values.items() if key != "name"}
        if layer.label != COMMAND_LINE:
            values.pop(SWEEP, None)
        for section, given in values.items():
            unknown = section not in registry.kinds and section not in FIXED_SECTIONS
            if lenient and unknown and layer.writer.providers.get(section):
                missing[section] = _of_missing_kind(layer, section, given, registry)
                continue
            if section in registry.kinds and (given is None or given == MANDATORY):
                choices.pop(section, None)
                continue
            if section in FIXED_SECTIONS and given == MANDATORY:
                sections[section] = Section(FIXED_SECTIONS[section])
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
    """Merge a fixed section's keys. With `lenient`, unavailable components in it are omitted: they
    belonged to the training of a stored recipe."""
    try:
        section.merge(layer, name, keys, registry)
    except PluginError:
        known = keys_of(FIXED_SECTIONS[name])
        others = {
            key: own for key, own in keys.items() if key not in known or not known[key].components
        }
        if not lenient or len(others) == len(keys):
            raise
        section.merge(layer, name, others, registry)


def _own_name(name: str, layers: Sequence[Layer]) -> str:
    """Return the recipe's name: as its own file states it, not a recipe that it extends; otherwise `name`."""
    for layer in layers:
        stated = layer.values.get("name")
        if stated is not None and not isinstance(stated, str):
            raise wrong_type(f"{layer.label}: name", stated, str)
        if stated is not None:
            _check_name(f"{layer.label}: name", stated, "write a plain name")
    own = [layer for layer in layers if layer.label != COMMAND_LINE][-1]
    return name if own.values.get("name") is None else str(own.values["name"])


def _check_name(place: str, name: str, next_step: str) -> None:
    """Refuse a recipe name that would be unsafe or invalid as part of a path."""
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
    """A placeholder for a stored section whose kind no plugin in use defines."""
    keys = dict(given) if isinstance(given, dict) else {"name": given}
    error = PluginError(
        f"{layer.label}: {section}",
        f"the kind {section!r} belongs to a plugin that is not in use; its component was provided by "
        f"{layer.writer.providers[section]}",
        registry.with_reasons("install or enable it, and repeat the command"),
    )
    return MissingComponent(str(keys.pop("name", "")), keys, error)


def _keys(label: str, section: str, given: object, registry: Registry) -> dict[str, Any]:
    """Return a layer's values for a section: key -> value."""
    place = f"{label}: {section}"
    kinds = registry.kinds
    if section == "defaults":
        shipped = {recipe.name for recipe in library.list_recipes()}
        lines = forms.extends_of(given, shipped.__contains__)
        raise RecipeError(
            place,
            "is not a section of a recipe: a recipe names those that it builds on under extends, and its components "
            "in their sections",
            "write instead:" + "".join(f"\n    {line}" for line in lines),
        )
    if section not in kinds and section not in FIXED_SECTIONS:
        step = close_match(section, [*kinds, *FIXED_SECTIONS, "extends", "name"])
        if not step.startswith("did you mean"):
            step = registry.with_reasons(step)  # it may be a kind of a plugin that is not in use
        raise RecipeError(place, "is not a section of a recipe", step)
    if section in kinds and isinstance(given, str):
        given = {"name": given}
    if isinstance(given, dict):
        return given
    if section in kinds:
        raise not_a_component(place, given, section, registry)
    raise RecipeError(
        place,
        f"is {given!r}, must be a mapping of keys to values",
        f"write {setting(f'{place}.KEY', given if isinstance(given, SCALARS) else 'VALUE')}",
    )


def _finish(
    name: str,
    sections: dict[str, Section],
    missing: dict[str, MissingComponent],
    registry: Registry,
) -> Recipe:
    """Add defaults, resolve interpolations, and build the dataclasses."""
    plain: dict[str, dict[str, Any]] = {}
    classes: dict[str, type[Any]] = {}
    completion = _Completion(registry)
    lacking, origins = completion.lacking, completion.origins
    for section in (*registry.kinds, *FIXED_SECTIONS):
        if (current := sections.get(section)) is not None and current.config_class is not None:
            origins.update(current.origins)
            classes[section] = current.config_class
            plain[section] = completion.complete((section,), current.config_class, current.values)
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
    """Return the origins in the recipe's order, without keys of removed or replaced sections."""
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
