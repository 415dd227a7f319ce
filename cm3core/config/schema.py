"""Check recipe values against config dataclasses: the types that a field may have, and whether a value fits.

Fields may be bool, int, float, str, None, Literal, list, tuple and dict (string keys) of them,
unions, nested dataclasses, and other components (`cm3core.config.schema`). Values are
YAML values: scalars, lists and dicts. An integer fits a float field and becomes a float; nothing
else is converted, so `layers: "6"` or `pack: 1` is an error rather than a guess.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin
from weakref import WeakKeyDictionary

from cm3core.errors import PluginError, RecipeError
from cm3core.interfaces.component import ComponentConfig, chosen_name

# Fields that hold other components: a retriever made of retrievers, a sampler around a sampler.
#
#     parts: dict[str, RetrieverConfig]      a recipe gives {words: bm25, meaning: {name: dense}}
#     inner: SamplerConfig                   a recipe gives a name, or {name: cfg, guidance_scale: 3}
#
# The annotation is the base of a kind's configs; the recipe names the component.


@dataclass(frozen=True)
class ComponentField:
    """A field whose values are components.

    Args:
        kind: of the components.
        form: "one", "list" or "dict" (of names that the recipe chooses).
        optional: whether it may be null.
    """

    kind: str
    form: Literal["one", "list", "dict"]
    optional: bool = False


def component_field(annotation: Any) -> ComponentField | None:
    """Return the kind of components that a field with this annotation holds; None for other fields."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_kind_base(annotation):
        return ComponentField(annotation.kind, "one")
    if origin in (Union, types.UnionType) and len(arguments) == 2 and types.NoneType in arguments:
        [inner] = [argument for argument in arguments if argument is not types.NoneType]
        found = component_field(inner)
        return None if found is None else ComponentField(found.kind, found.form, optional=True)
    if origin is list and is_kind_base(arguments[0]):
        return ComponentField(arguments[0].kind, "list")
    if origin is dict and arguments[0] is str and is_kind_base(arguments[1]):
        return ComponentField(arguments[1].kind, "dict")
    return None


def is_kind_base(annotation: Any) -> bool:
    """Whether a class is the base of a kind's configs (rather than the config of a component)."""
    return (
        isinstance(annotation, type)
        and issubclass(annotation, ComponentConfig)
        and bool(vars(annotation).get("kind"))
    )


def components_in(value: Any) -> list[tuple[str, ComponentConfig]]:
    """(path, config) of the components in a field's value.

    The path is "" for a single one, ".0" or ".NAME" for those in a list or a dict."""
    if isinstance(value, ComponentConfig):
        return [("", value)]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return [(f".{key}", item) for key, item in items if isinstance(item, ComponentConfig)]


SCALARS = (bool, int, float, str, types.NoneType)


class WrongTypeError(Exception):
    """A value doesn't fit; `annotation` is that of the innermost wrong value, and `expected` its `shown_type`."""

    def __init__(self, value: object, annotation: Any) -> None:
        super().__init__(value, annotation)
        self.value, self.annotation = value, annotation

    @property
    def expected(self) -> str:
        """The annotation, formatted for readers."""
        return shown_type(self.annotation)


@dataclass(frozen=True)
class Key:
    """The values that a recipe may give for a field of a config dataclass.

    Args:
        annotation: the field's, resolved.
        components: the components it holds; None: none.
        nested: the dataclass it holds, see `nested_dataclass`; None: none.
    """

    annotation: Any
    components: ComponentField | None
    nested: type[Any] | None


#: Cached results of `keys_of`: it is called for every class whenever plugins are discovered, and resolving
#: the annotations took most of that time. Weak, because classes of plugin files can be loaded again.
_KEYS: WeakKeyDictionary[type[Any], dict[str, Key]] = WeakKeyDictionary()


def keys_of(config_class: type[Any]) -> dict[str, Key]:
    """Return field name -> its description, in field order, without class variables."""
    if config_class not in _KEYS:
        resolved = typing.get_type_hints(config_class)
        _KEYS[config_class] = {
            item.name: Key(
                annotation := resolved[item.name],
                component_field(annotation),
                nested_dataclass(annotation),
            )
            for item in init_fields(config_class)
        }
    return dict(_KEYS[config_class])


def hints(config_class: type[Any]) -> dict[str, Any]:
    """Return field name -> resolved annotation, in field order, without class variables."""
    return {name: key.annotation for name, key in keys_of(config_class).items()}


def init_fields(config_class: type[Any]) -> list[Field[Any]]:
    """Return the fields that a recipe may set."""
    return [item for item in fields(config_class) if item.init]


def default(item: Field[Any]) -> Any:
    """Return a field's default value, `MISSING` if the recipe must set it."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def defaults(config_class: type[Any]) -> dict[str, Any]:
    """Return field name -> default value, `MISSING` if the recipe must set it, in field order."""
    return {item.name: default(item) for item in init_fields(config_class)}


def check_schema(place: str, config_class: type[Any]) -> dict[str, Any]:
    """Return the dataclass's `hints`; raise `PluginError` unless a recipe can hold every field's type."""
    try:
        annotations = hints(config_class)
    except NameError as error:
        raise PluginError(
            place,
            f"{config_class.__name__} has an annotation that can't be resolved: {error}",
            "import the type at module level, outside `if TYPE_CHECKING`",
        ) from error
    for name, annotation in annotations.items():
        if name == "name":
            raise PluginError(
                place,
                f"{config_class.__name__} has a field 'name', the recipe's own key",
                "rename the field",
            )
        if not _supported(annotation):
            raise PluginError(
                place,
                f"{config_class.__name__}.{name} is {shown_type(annotation)}, which a recipe "
                "can't hold",
                "use bool, int, float, str, None, Literal, lists, tuples and dicts of them, or a "
                "dataclass",
            )
    return annotations


def _supported(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS or annotation is Any or origin is Literal:
        return True
    if component_field(annotation) is not None:
        return True
    if origin in (list, Union, types.UnionType):
        return all(_supported(argument) for argument in arguments)
    if origin is tuple:
        return all(argument is Ellipsis or _supported(argument) for argument in arguments)
    if origin is dict:
        return arguments[0] is str and _supported(arguments[1])
    if isinstance(annotation, type) and is_dataclass(annotation):
        return all(_supported(inner) for inner in hints(annotation).values())
    return False


def shown_type(annotation: Any) -> str:
    """Return an annotation formatted for readers: `int | None`, `list[float]`, `'a' or 'b'`.

    >>> shown_type(Literal["adamw", "muon"]), shown_type(list[float]), shown_type(int | None)
    ("'adamw' or 'muon'", 'list[float]', 'int | None')
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is types.NoneType:
        return "None"
    if is_kind_base(annotation):
        return str(annotation.kind)
    if origin is Literal:
        return " or ".join(repr(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(shown_type(argument) for argument in arguments)
    if origin is not None:
        inner = ", ".join(
            "..." if argument is Ellipsis else shown_type(argument) for argument in arguments
        )
        return f"{origin.__name__}[{inner}]"
    return getattr(annotation, "__name__", str(annotation))


def is_interpolation(value: object) -> bool:
    """Whether a value refers to another one (`${decoder.d_model}`).

    Its type is checked after it is resolved."""
    return isinstance(value, str) and "${" in value


def nested_dataclass(annotation: Any) -> type[Any] | None:
    """Return the dataclass that a field holds (also as `X | None`), None for other fields.

    Components don't count: the recipe chooses their class."""
    if component_field(annotation) is not None:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and is_dataclass(candidate):
            return candidate
    return None


def fit(value: object, annotation: Any) -> Any:
    """Return the YAML value that fits the annotation: tuples stay lists, integers become floats.

    Raises:
        WrongTypeError: it doesn't fit.
    """
    if is_interpolation(value) or annotation is Any:
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _fit_union(value, annotation, arguments)
    if origin is Literal:
        if any(value == argument and type(value) is type(argument) for argument in arguments):
            return value
    elif origin is list and isinstance(value, list):
        return [fit(item, arguments[0]) for item in value]
    elif origin is tuple and isinstance(value, (list, tuple)):
        if arguments[1:] == (Ellipsis,):
            return [fit(item, arguments[0]) for item in value]
        if len(arguments) == len(value):
            return [fit(item, inner) for item, inner in zip(value, arguments, strict=True)]
    elif origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: fit(item, arguments[1]) for key, item in value.items()}
    elif is_kind_base(annotation) and isinstance(value, annotation):
        return value
    elif annotation is float and (type(value) is int or type(value) is float):
        return float(value)
    elif annotation in SCALARS and type(value) is annotation:
        return value
    raise WrongTypeError(value, annotation)


def _fit_union(value: object, annotation: Any, members: tuple[Any, ...]) -> Any:
    """Fit the first possible member, starting with the value's own type: 1 stays 1 in `float | int`."""
    for member in sorted(members, key=lambda member: member is not type(value)):
        if nested_dataclass(member) is not None and isinstance(value, dict):
            return value
        try:
            return fit(value, member)
        except WrongTypeError:
            continue
    raise WrongTypeError(value, annotation)


def to_plain(value: object) -> Any:
    """Convert a config's value to a YAML value: dataclasses become dicts, tuples become lists.

    Inner components that a recipe chose by name keep their names."""
    if is_dataclass(value) and not isinstance(value, type):
        name = chosen_name(value) if isinstance(value, ComponentConfig) else ""
        later = {key for base in type(value).__mro__ for key in vars(base).get("later_keys", ())}
        keys = {
            item.name: to_plain(getattr(value, item.name))
            for item in init_fields(type(value))
            if item.name not in later or getattr(value, item.name) != default(item)
        }
        return {"name": name, **keys} if name else keys
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_plain(value: Any, annotation: Any) -> Any:
    """The inverse of `to_plain` for values that fit."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    inner_class = nested_dataclass(annotation) if origin in (None, Union, types.UnionType) else None
    if inner_class is not None and isinstance(value, dict):
        return make(inner_class, value)
    if origin in (Union, types.UnionType):
        tuples = [member for member in arguments if get_origin(member) is tuple]
        return from_plain(value, tuples[0]) if isinstance(value, list) and tuples else value
    if origin is list:
        return [from_plain(item, arguments[0]) for item in value]
    if origin is tuple:
        inner = [arguments[0]] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        return tuple(
            from_plain(item, annotation) for item, annotation in zip(value, inner, strict=True)
        )
    if origin is dict:
        return {key: from_plain(item, arguments[1]) for key, item in value.items()}
    return value


def make(config_class: type[Any], values: dict[str, Any]) -> Any:
    """Build an instance of a config dataclass from its plain values."""
    annotations = hints(config_class)
    return config_class(
        **{name: from_plain(value, annotations[name]) for name, value in values.items()}
    )


# A component's config together with its inner components: checks and needs of all of them.


def parts_of(config: object) -> Iterator[tuple[str, ComponentConfig]]:
    """(path, config) of the components in a config's own fields, e.g. "parts.words"."""
    for name, key in keys_of(type(config)).items():
        value = getattr(config, name)
        if key.components is not None:
            yield from ((f"{name}{path}", part) for path, part in components_in(value))
        elif is_dataclass(value) and not isinstance(value, ComponentConfig):
            yield from ((f"{name}.{path}", part) for path, part in parts_of(value))


def all_parts(config: object) -> Iterator[tuple[str, ComponentConfig]]:
    """(path, config) of the inner components at every depth."""
    for path, part in parts_of(config):
        yield path, part
        yield from ((f"{path}.{deeper}", inner) for deeper, inner in all_parts(part))


def check_values(config: ComponentConfig) -> None:
    """Call `check` of a component's config."""
    ComponentConfig.check(config)  # a plugin's override may not call the base's
    config.check()


def check_config(
    config: ComponentConfig,
    place: str = "",
    check: Callable[[ComponentConfig], None] = check_values,
) -> None:
    """Check a component's config and its inner components.

    Args:
        config: checked.
        place: its place in the recipe, e.g. "retriever.parts.words"; "": its kind's section.
        check: called with each of them.

    Raises:
        RecipeError: a value is refused; for an inner component, with its place in the recipe.
    """
    place = place or config.kind
    try:
        check(config)
    except RecipeError as error:
        inner = error.place.removeprefix(f"{config.kind}.")
        if place == config.kind or inner == error.place:
            raise
        # the step, too, names keys of the component's section
        step = re.sub(rf"\b{config.kind}\.(?=\w+=)", f"{place}.", error.next_step)
        raise type(error)(f"{place}.{inner}", error.cause, step) from error
    for path, part in parts_of(config):
        check_config(part, f"{place}.{path}", check)


def needs_of(config: ComponentConfig) -> tuple[str, ...]:
    """Sections that a component or its inner components need."""
    parts = [config, *(part for _, part in all_parts(config))]
    return tuple(dict.fromkeys(kind for part in parts for kind in part.needed()))


# The interpolations that a recipe may have: `${section.key}`, and nothing that reads from elsewhere.
#
# OmegaConf also has resolvers (`${oc.env:NAME}`, `${oc.decode:...}`). Recipes are untrusted, and
# their resolved values are written into runs and checkpoints and shown in errors, so a resolver
# would publish the environment.


_START = re.compile(r"(\\*)\$\{")
_PLAIN = re.compile(r"\$\{[A-Za-z_][\w-]*(?:\.[\w-]+|\[\w+\])*\}")
_SHOWN = 60


def foreign_interpolations(text: str) -> Iterator[str]:
    r"""The interpolations in a text other than `${section.key}`, each from its `${` on.

    >>> list(foreign_interpolations(r"${train.steps} \${literal} ${oc.env:HOME}"))
    ['${oc.env:HOME}']
    """
    for start in _START.finditer(text):
        begin = start.end() - 2
        escaped = len(start[1]) % 2 == 1
        if not escaped and _PLAIN.match(text, begin) is None:
            end = text.find("}", begin)
            yield text[begin:] if end < 0 else text[begin : end + 1]


def check_interpolations(place: str, value: object) -> None:
    """Raise `RecipeError` if a value, or anything in it, has an interpolation other than
    `${section.key}`.

    Args:
        place: of the value, for the error; keys of mappings are appended.
        value: text, a number, or lists and mappings of them.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            check_interpolations(
                f"{place}.{key}" if place[-1:] not in ": " else f"{place}{key}", inner
            )
    elif isinstance(value, list):
        for inner in value:
            check_interpolations(place, inner)
    elif (
        isinstance(value, str) and (found := next(foreign_interpolations(value), None)) is not None
    ):
        shown = found if len(found) <= _SHOWN else f"{found[:_SHOWN]}..."
        raise RecipeError(
            place,
            f"contains {shown!r}; recipes can only refer to other keys of the recipe, not to the environment or "
            "resolvers",
            r"write ${section.key}, or \${ for the characters themselves",
        )
