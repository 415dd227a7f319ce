"""A JSON Schema (draft 2020-12) of recipe files, made from the config classes of all components in use. No torch.

An editor completes, explains and checks a recipe by it. It refuses nothing that `cm3core.recipe` reads, except names in
recipes of other versions; what it can't know (values of other layers, combinations of keys) it leaves to
`cm3 recipe check`.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from cm3apps.catalog import Key, docstring, keys_of, purpose, summary
from cm3core._version import __version__
from cm3core.config.schema import hints, is_kind_base, nested_dataclass
from cm3core.errors import PluginError
from cm3core.interfaces.component import ranges_of
from cm3core.plugins.registry import Registry
from cm3core.recipe.layers import NOTES, SWEEP
from cm3core.recipe.library import list_recipes
from cm3core.recipe.sections import FIXED_SECTIONS

#: Part of a JSON Schema.
Schema = dict[str, Any]
DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: A key of the schema's `$defs`: texts that stand for a value of any type.
_REFERENCE = "reference"
_REFERENCES: Schema = {
    "description": "the value of another key, ${section.key}; or ???, which forgets what earlier files set",
    "type": "string",
    "pattern": r"\$\{|^\?\?\?$",
}
_SCALARS: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    types.NoneType: "null",
}
#: Words of editors: a key that is accepted and not suggested.
_OLD: Schema = {"deprecated": True, "doNotSuggest": True}


def recipe_schema(registry: Registry) -> Schema:
    """Return the schema of the recipes that this registry can compose."""
    return _Writer(registry).schema()


@dataclass(frozen=True)
class _Component:
    """A component: its config class, the name to suggest, and a pattern of all of its names."""

    config_class: type[Any]
    shown: str
    pattern: str


@dataclass
class _Writer:
    """Writes the schema. `definitions`: its `$defs`."""

    registry: Registry
    definitions: Schema = field(default_factory=lambda: {_REFERENCE: _REFERENCES})

    def schema(self) -> Schema:
        kinds = self.registry.kinds
        for kind in kinds:
            self._add_kind(kind)
        sections: Schema = {
            # the names again, because editors suggest no values from conditions
            kind: {
                "anyOf": [
                    _ref(kind),
                    *self.definitions[kind]["else"]["anyOf"][:1],
                    {"type": "null"},
                ],
                "description": purpose(row),
            }
            for kind, row in kinds.items()
            if not row.key
        }
        for name, config_class in FIXED_SECTIONS.items():
            sections[name] = self._fixed(name, config_class)
        shipped = [recipe.name for recipe in list_recipes()]
        recipe = {"anyOf": [{"enum": shipped}, {"type": "string"}]}
        return {
            "$schema": DIALECT,
            "$comment": f"written by cm3 recipe schema, cm3leon {__version__}",
            "title": "recipe",
            "description": "all settings of a run: a section for each kind of component, and the fixed sections",
            "type": "object",
            "properties": {
                "extends": {
                    "description": "shipped recipes and paths whose values this file changes, left to right",
                    "anyOf": [*recipe["anyOf"], {"type": "array", "items": recipe}],
                },
                SWEEP: {"description": "how `cm3 sweep` varies the recipe", "type": "object"},
                "name": {
                    "description": "the recipe's name (default: the file's)",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 100,
                },
                **sections,
            },
            "patternProperties": {
                f"^{NOTES}": {"description": "values for anchors; no part of the recipe"}
            },
            "additionalProperties": False,
            "$defs": self.definitions,
        }

    def _add_kind(self, kind: str) -> None:
        """Add a definition of a kind's components, and of each component."""
        components = self._components(kind)
        if not components:
            nothing = {"not": {}, "description": "no plugin in use provides one"}
            self.definitions[kind] = {"else": {"anyOf": [nothing]}, "if": False}
            return
        branches: list[Schema] = []
        properties: dict[str, list[tuple[Schema, str]]] = {}
        for one in components:
            key = f"{kind}/{one.shown}"
            self.definitions[key] = self._component(kind, one.config_class)
            for name, own in self.definitions[key]["properties"].items():
                properties.setdefault(name, []).append((own, f"{_pointer(key)}/properties/{name}"))
            chosen = {"type": "string", "pattern": f"^{one.pattern}$"}
            branches.append(
                {
                    "if": {"properties": {"name": chosen}, "required": ["name"]},
                    "then": _ref(key),
                }
            )
        plugins = "|".join(info.name for info in self.registry.plugins)
        names = [
            {
                "description": f"the {self.registry.kinds[kind].words}",
                "enum": [one.shown for one in components],
                "enumDescriptions": [self._summary(kind, one.shown) for one in components],
            },
            {
                "description": "with the plugin that provides it",
                "type": "string",
                "pattern": f"^({'|'.join(one.pattern for one in components)})$",
            },
            {
                "description": "the place of a trained part: a path with a /, PLUGIN:NAME or hf://USER/NAME",
                "type": "string",
                "pattern": f"^(?!({plugins})/).*[/:]",
            },
        ]
        without = {key: _either(found) for key, found in properties.items() if key != "name"}
        self.definitions[kind] = {
            "if": {"type": "object"},
            "then": {
                "properties": {"name": {"anyOf": names}},
                "allOf": branches,
                # a file that extends another may change keys of the component that the other one names
                "if": {"required": ["name"]},
                "else": {"properties": without, "additionalProperties": False},
            },
            "else": {"anyOf": names},
        }

    def _components(self, kind: str) -> list[_Component]:
        """Every component of a kind."""
        plugins = [info.name for info in self.registry.plugins if info.status == "loaded"]
        found = []
        for name in self.registry.names(kind):
            owners = self.registry.owners(kind, name)
            for owner in owners:
                config_class = self.registry.config_class(kind, f"{owner}/{name}")
                # a component that moved between our own distributions has the names of all of them
                every = [one for one in plugins if self._is(kind, f"{one}/{name}", config_class)]
                only = len(owners) == 1
                pattern = f"(({'|'.join(every)})/){'?' if only else ''}{name}"
                shown = name if only else f"{owner}/{name}"
                found.append(_Component(config_class, shown, pattern))
        return found

    def _is(self, kind: str, name: str, config_class: type[Any]) -> bool:
        try:
            return self.registry.config_class(kind, name) is config_class
        except PluginError:
            return False

    def _summary(self, kind: str, name: str) -> str:
        return summary(docstring(self.registry.config_class(kind, name)))

    def _component(self, kind: str, config_class: type[Any]) -> Schema:
        keys = self._properties(config_class, ranges_of(config_class))
        for old, new in config_class.renamed.items():
            keys[old] = {**keys[new], **_OLD, "description": f"the old name of {new}"}
        return {
            "description": summary(docstring(config_class)),
            "type": "object",
            # refuses a mapping; the definition of the kind checks the name
            "properties": {"name": {"type": "string"}, **keys},
            "additionalProperties": False,
        }

    def _fixed(self, name: str, config_class: type[Any]) -> Schema:
        return {
            "description": summary(docstring(config_class)),
            "type": "object",
            "properties": self._properties(config_class, config_class.ranges),
            "additionalProperties": False,
        }

    def _properties(
        self, config_class: type[Any], ranges: Mapping[str, tuple[float, float]]
    ) -> Schema:
        """Key -> schema of a config class's fields."""
        return self._of_keys(
            config_class, ranges, {key.name: key for key in keys_of(config_class)}, ""
        )

    def _of_keys(
        self,
        config_class: type[Any],
        ranges: Mapping[str, tuple[float, float]],
        keys: Mapping[str, Key],
        prefix: str,
    ) -> Schema:
        result: Schema = {}
        for name, annotation in hints(config_class).items():
            dotted = f"{prefix}{name}"
            inner = nested_dataclass(annotation)
            nested: Schema = {}
            if inner is not None:
                nested = {
                    "type": "object",
                    "properties": self._of_keys(inner, ranges, keys, f"{dotted}."),
                    "additionalProperties": False,
                }
            several = list(_alternatives(annotation, ranges.get(dotted), nested))
            if {"type": "string"} not in several:
                several.append(_ref(_REFERENCE))
            own: Schema = {} if not keys[dotted].text else {"description": keys[dotted].text}
            own |= several[0] if len(several) == 1 else {"anyOf": several}
            if not keys[dotted].required and _is_json(keys[dotted].default):
                own["default"] = keys[dotted].default
            result[name] = own
        return result


def _alternatives(
    annotation: Any, limits: tuple[float, float] | None, nested: Schema
) -> Iterator[Schema]:
    """The schemas of which a value of this type fits one; a nested dataclass has the schema `nested`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        for member in arguments:
            yield from _alternatives(member, limits, nested)
    elif origin is Literal:
        yield {"enum": list(arguments)}
    elif is_kind_base(annotation):
        yield _ref(annotation.kind)
    elif origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        yield {"type": "array", "items": _item(arguments[0], limits, nested)}
    elif origin is tuple:
        items = [_item(one, limits, nested) for one in arguments]
        yield {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    elif origin is dict:
        item = _item(arguments[1], limits, nested)
        if is_kind_base(arguments[1]):  # null removes what an earlier file has
            item = {"anyOf": [item, {"type": "null"}]}
        yield {"type": "object", "additionalProperties": item}
    elif annotation in _SCALARS:
        yield {"type": _SCALARS[annotation]} | (
            _limits(limits) if annotation in (int, float) else {}
        )
    else:
        yield nested


def _item(annotation: Any, limits: tuple[float, float] | None, nested: Schema) -> Schema:
    several = list(_alternatives(annotation, limits, nested))
    if {"type": "string"} not in several and not is_kind_base(annotation):
        several.append(_ref(_REFERENCE))
    return several[0] if len(several) == 1 else {"anyOf": several}


def _limits(limits: tuple[float, float] | None) -> Schema:
    """The smallest and the largest value of a number."""
    bounds = zip(("minimum", "maximum"), limits or (), strict=False)
    return {word: bound for word, bound in bounds if math.isfinite(bound)}


def _either(found: Sequence[tuple[Schema, str]]) -> Schema:
    """The schema of a key of which it is not known which component has it: (schema, pointer to it) of each."""
    different: list[tuple[Schema, str]] = []
    for own, pointer in found:
        if all(own != other for other, _ in different):
            different.append((own, pointer))
    refs = [{"$ref": pointer} for _, pointer in different]
    return refs[0] if len(refs) == 1 else {"anyOf": refs}


def _ref(name: str) -> Schema:
    """A reference to a definition."""
    return {"$ref": _pointer(name)}


def _pointer(name: str) -> str:
    return f"#/$defs/{name.replace('/', '~1')}"


def _is_json(value: Any) -> bool:
    """Whether JSON can hold a default: it has no infinite numbers."""
    if isinstance(value, dict):
        return all(map(_is_json, value.values()))
    if isinstance(value, list):
        return all(map(_is_json, value))
    return not isinstance(value, float) or math.isfinite(value)
