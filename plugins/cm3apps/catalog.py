"""The catalogue: the kinds, and each component with its keys, origin and the laws of its kit.

Imports no torch: laws are read from the kits' sources, because importing a kit needs torch, pytest
and hypothesis. A key is documented in the `Args:` section of a docstring, of the config class itself or
of a class that it inherits from:

    Args:
        temperature: divides the logits; 0 takes the most probable code.
        top_k, top_p: the part of the distribution to keep.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import yaml

from cm3core import hookspecs, interfaces
from cm3core.config.schema import (
    default,
    hints,
    init_fields,
    nested_dataclass,
    shown_type,
    to_plain,
)
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.interfaces.component import ComponentConfig
from cm3core.plugins.kinds import Kind
from cm3core.plugins.registry import Registry
from cm3core.recipe.sections import FIXED_SECTIONS

#: The mark in a recipe for a value that the user must give.
MANDATORY = "???"


@dataclass(frozen=True)
class Brought:
    """A component by name: the plugin that provides it, the plugin's version and its origin; for `in_short`, see
    `ComponentConfig.in_short`."""

    name: str
    plugin: str
    version: str
    origin: str
    summary: str
    in_short: list[str]


@dataclass(frozen=True)
class KindEntry:
    """A kind.

    Args:
        kind: the recipe's section.
        summary: a description of its components.
        hook, config, interface, kit: see `cm3core.plugins.kinds.Kind`; classes of
            `cm3core.interfaces` by their names, others as "module.Class".
        methods: the methods that an implementation must define: "name(arguments)" -> the first
            paragraph of its documentation.
        keys: the recipe keys that every component of the kind has.
        laws: law -> its statement.
        components: its components and the plugins that provide them.
    """

    kind: str
    summary: str
    hook: str
    config: str
    interface: str
    kit: str
    methods: dict[str, str]
    keys: list[Key]
    laws: dict[str, str]
    components: list[Brought]


@dataclass(frozen=True)
class ComponentEntry:
    """A component.

    Args:
        kind, name: the recipe's section, and the name in it.
        summary: the first paragraph of its config's documentation.
        text: the documentation's other paragraphs, without `Args:`.
        plugin, version, origin: the plugin that provides it, see `PluginInfo`.
        config: "module:Class" of its config.
        needs: other sections that a recipe must have.
        in_short: see `ComponentConfig.in_short`, of the default values.
        keys: the keys of its section.
        laws: the laws of the kind's kit: law -> its statement.
        snippet: the recipe's section, with all defaults.
    """

    kind: str
    name: str
    summary: str
    text: str
    plugin: str
    version: str
    origin: str
    config: str
    needs: list[str]
    in_short: list[str]
    keys: list[Key]
    laws: dict[str, str]
    snippet: str


@dataclass(frozen=True)
class SectionEntry:
    """A recipe's section that holds no component, such as `train`.

    Args:
        section: its name.
        summary: the first paragraph of its documentation.
        text: the documentation's other paragraphs, without `Args:`.
        keys: its keys.
        snippet: the section with all defaults.
    """

    section: str
    summary: str
    text: str
    keys: list[Key]
    snippet: str


@dataclass(frozen=True)
class KeyEntry:
    """A key by its path in a recipe, such as `sampler.temperature`.

    Args:
        path: the path.
        key: the key.
        of: the section, as "train", or the components that have such a key, as "sampler/cfg".
    """

    path: str
    key: Key
    of: list[str]


def section_entry(section: str) -> SectionEntry:
    """Return a section; `section` is one of `FIXED_SECTIONS`."""
    config_class = FIXED_SECTIONS[section]
    text, keys = docstring(config_class), keys_of(config_class)
    values = {key.name: key.default for key in keys if "." not in key.name}
    snippet = "\n".join([f"{section}:", *_yaml(values, "  ")]) + "\n"
    return SectionEntry(section, summary(text), _other_paragraphs(text), keys, snippet)


def key_entries(path: str, registry: Registry) -> list[KeyEntry]:
    """Return the keys of a path: a section's, a component's, or those of all components of a kind. Equal keys of several
    components are one entry.

    Args:
        path: `SECTION.KEY`, `KIND.KEY` or, as in `find`, `NAME.KEY`; `KEY` may have dots.
        registry: the available components.

    Raises:
        PluginError: there is no such section, component or key.
    """
    owner, _, name = path.partition(".")
    place = f"cm3 describe {path}"
    if owner in FIXED_SECTIONS:
        owned = {owner: keys_of(FIXED_SECTIONS[owner])}
        has_no_key = f"the section {owner!r} has no key {name!r}"
    elif owner in registry.kinds:
        owned = {
            f"{owner}/{shown}": keys_of(registry.config_class(owner, full))
            for shown, full in _components_of(owner, registry)
        }
        has_no_key = f"no {owner} has a key {name!r}"
    else:
        kind, component = find(owner, registry, place)
        owned = {f"{kind}/{component}": keys_of(registry.config_class(kind, component))}
        has_no_key = f"the {kind} {component!r} has no key {name!r}"
    entries: list[KeyEntry] = []
    for one, keys in owned.items():
        for key in keys:
            if key.name != name:
                continue
            same = next((entry for entry in entries if entry.key == key), None)
            if same is None:
                entries.append(KeyEntry(path, key, [one]))
            else:
                same.of.append(one)
    if not entries:
        known = {key.name for keys in owned.values() for key in keys}
        near = close_match(name, known)
        step = near if near.startswith("did you mean") else f"`cm3 describe {owner}` lists its keys"
        raise PluginError(place, has_no_key, step)
    return entries


def _components_of(kind: str, registry: Registry) -> Iterator[tuple[str, str]]:
    """Yield the components of a kind: (name to show, name for `Registry.config_class`)."""
    for name in registry.names(kind):
        owners = registry.owners(kind, name)
        for owner in owners:
            yield name if len(owners) == 1 else f"{owner}/{name}", f"{owner}/{name}"


def kind_entries(registry: Registry) -> list[KindEntry]:
    """Return every kind, in the order in which recipes are shown."""
    return [kind_entry(kind, registry) for kind in registry.kinds]


def kind_entry(kind: str, registry: Registry) -> KindEntry:
    """Return a kind; `kind` is one of `registry.kinds`."""
    entry = registry.kinds[kind]
    interface = entry.interface_class
    methods = {
        _signature(interface, name): summary(inspect.getdoc(getattr(interface, name)) or "")
        for name in vars(interface)
        if name in interface.__abstractmethods__
    }
    return KindEntry(
        kind,
        purpose(entry),
        entry.hook,
        _full_name(entry.config),
        _full_name(entry.interface_class),
        entry.kit,
        methods,
        keys_of(entry.config),
        laws_of(entry),
        list(_brought(kind, registry)),
    )


def _full_name(cls: type[Any]) -> str:
    """The name of a class, with its module unless it is in `cm3core.interfaces`."""
    exported = getattr(interfaces, cls.__name__, None) is cls
    return cls.__name__ if exported else f"{cls.__module__}.{cls.__name__}"


def interface_name(kind: Kind) -> str:
    """The class that a kind's components derive from, with its module."""
    name = _full_name(kind.interface_class)
    return name if "." in name else f"cm3core.interfaces.{name}"


def purpose(kind: Kind) -> str:
    """Return the kind's summary, or the first sentence of its hook's documentation."""
    text = kind.summary or summary(getattr(hookspecs, kind.hook).__doc__ or "")
    return re.split(r" Recipe (?:section|key)", text)[0].removesuffix(".")


def _signature(interface: type[Any], name: str) -> str:
    member = inspect.getattr_static(interface, name)
    if isinstance(member, property):
        return name
    parameters = [
        parameter
        for parameter in inspect.signature(getattr(interface, name)).parameters
        if parameter != "self"
    ]
    return f"{name}({', '.join(parameters)})"


def _brought(kind: str, registry: Registry) -> Iterator[Brought]:
    plugins = {info.name: info for info in registry.plugins}
    for name in registry.names(kind):
        for owner in registry.owners(kind, name):
            config_class = registry.config_class(kind, f"{owner}/{name}")
            yield Brought(
                name,
                owner,
                plugins[owner].version,
                plugins[owner].origin,
                summary(docstring(config_class)),
                _in_short(config_class),
            )


def _in_short(config_class: type[Any]) -> list[str]:
    """What a config says of its default values; nothing if it has none, or if they don't suffice."""
    try:
        lines: list[str] = config_class().in_short()
    # keys without a default, or a size that they do not decide
    except (TypeError, NotImplementedError, CM3Error):
        return []
    return lines


def component_entry(kind: str, name: str, registry: Registry) -> ComponentEntry:
    """Return a component; `name` may be `plugin/name`.

    Raises:
        PluginError: no plugin provides it, or several do.
    """
    config_class = registry.config_class(kind, name)
    owner, _, short = name.rpartition("/")
    owner = owner or registry.owners(kind, short)[0]
    info = next(info for info in registry.plugins if info.name == owner)
    keys, text = keys_of(config_class), docstring(config_class)
    return ComponentEntry(
        kind,
        short,
        summary(text),
        _other_paragraphs(text),
        owner,
        info.version,
        info.origin,
        f"{config_class.__module__}:{config_class.__qualname__}",
        list(config_class.needs),
        _in_short(config_class),
        keys,
        laws_of(registry.kinds[kind]),
        _snippet(registry.kinds[kind], name, keys, _names_of_parts(config_class, registry)),
    )


def _other_paragraphs(text: str) -> str:
    """Return a docstring's paragraphs after the first one, each in one line, without `Args:`."""
    body = [part for part in text.split("\n\n")[1:] if not part.startswith("Args:")]
    return "\n\n".join(" ".join(part.split()) for part in body)


def _names_of_parts(config_class: type[Any], registry: Registry) -> dict[str, str]:
    """Key -> name of the component that a key holds by default."""
    parts = {
        field.name: default(field)
        for field in init_fields(config_class)
        if field.default is not dataclasses.MISSING
        or field.default_factory is not dataclasses.MISSING
    }
    return {
        key: name
        for key, part in parts.items()
        if isinstance(part, ComponentConfig)
        for name in registry.names(part.kind)
        for owner in registry.owners(part.kind, name)
        if registry.config_class(part.kind, f"{owner}/{name}") is type(part)
    }


def _snippet(kind: Kind, name: str, keys: list[Key], names: dict[str, str]) -> str:
    section: dict[str, Any] = {"name": name}
    section |= {
        key.name: MANDATORY if key.required else key.default for key in keys if "." not in key.name
    }
    section |= {key: {"name": part, **section[key]} for key, part in names.items()}
    above, _, key = kind.key.partition(".")
    if not key:
        return "\n".join([f"{kind.name}:", *_yaml(section, "  ")]) + "\n"
    first, *others = _yaml(section, "    ")
    return "\n".join([f"{above}:", f"  {key}:", f"  - {first.lstrip()}", *others]) + "\n"


def _yaml(values: dict[str, Any], indent: str) -> Iterator[str]:
    """Yield lines of YAML: one line per key, lists and plain values on that line."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _yaml(value, f"{indent}  ")
        elif value == MANDATORY:
            yield f"{indent}{key}: {MANDATORY}  # must be given"
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            yield f"{indent}{key}: {text.removesuffix(chr(10)).removesuffix('...').strip()}"


def laws_of(kind: Kind) -> dict[str, str]:
    """Return law -> the first paragraph of its documentation, in the order of the kit's source; empty if
    the source can't be read."""
    module, _, class_name = kind.kit.partition(":")
    classes = _classes_of(module)
    laws: dict[str, str] = {}
    for name in _family(class_name, classes):
        for node in classes[name].body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("law_"):
                laws.setdefault(
                    node.name.removeprefix("law_"), summary(ast.get_docstring(node) or "")
                )
    return laws


def _classes_of(module: str) -> dict[str, ast.ClassDef]:
    """Return name -> class for a module's source, and for modules of its package from which it imports
    classes."""
    path = _source_of(module)
    if path is None:
        return {}
    package = f"{module.rpartition('.')[0]}."
    classes: dict[str, ast.ClassDef] = {}
    for node in _parsed(path, path.stat().st_mtime_ns).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            classes |= _classes_of(str(node.module))
    return classes


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed: int) -> ast.Module:
    """A source file that was last changed then; all kits take classes from the same few files."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _source_of(module: str) -> Path | None:
    """The file of a module, or None. The module is not imported."""
    top, *rest = module.split(".")
    try:
        # `find_spec` would import the package of the module, and a kit's package may need pytest
        package = importlib.util.find_spec(top)
        for folder in (package.submodule_search_locations or ()) if package and rest else ():
            if (path := Path(folder, *rest).with_suffix(".py")).is_file():
                return path
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    origin = None if found is None else found.origin
    return Path(origin) if origin is not None and origin.endswith(".py") else None


def _family(name: str, classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """Yield the class and those of its bases that are among `classes`."""
    if name in classes:
        yield name
        for base in classes[name].bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            yield from _family(named.id if isinstance(named, ast.Name) else "", classes)


def find(wanted: str, registry: Registry, place: str = "") -> tuple[str, str]:
    """Find the component or kind for `cm3 describe`.

    Args:
        wanted: `KIND`, `KIND/NAME`, `KIND/PLUGIN/NAME`, `PLUGIN/NAME` or `NAME`.
        registry: the available components.
        place: for errors; "": the command with `wanted`.

    Returns:
        The kind, and the component's name for `Registry.config_class`; "" for the kind itself.

    Raises:
        PluginError: nothing, or more than one component, has this name.
    """
    place = place or f"cm3 describe {wanted}"
    kinds = registry.kinds
    if wanted in kinds:
        return wanted, ""
    first, _, rest = wanted.partition("/")
    if first in kinds:
        registry.config_class(first, rest, place=place)
        return first, rest
    plugin, _, name = wanted.rpartition("/")
    found = [
        kind
        for kind in kinds
        if name in registry.names(kind) and (not plugin or plugin in registry.owners(kind, name))
    ]
    if len(found) > 1:
        choices = " or ".join(f"{kind}/{wanted}" for kind in found)
        raise PluginError(
            place, f"{wanted!r} is the name of several components", f"write {choices}"
        )
    loaded = {info.name: info for info in registry.plugins if info.status == "loaded"}
    if not found and plugin in loaded:
        brought = [own for names in loaded[plugin].components.values() for own in names]
        raise PluginError(
            place,
            f"the plugin {plugin!r} provides no component {name!r}",
            close_match(name, brought),
        )
    if not found and plugin:
        raise PluginError(
            place,
            f"no kind and no loaded plugin is called {plugin!r}",
            registry.with_reasons(close_match(plugin, {*kinds, *loaded})),
        )
    if not found:
        raise PluginError(
            place,
            f"there is no kind, no component and no section {wanted!r}",
            _near(wanted, registry),
        )
    registry.config_class(found[0], wanted, place=place)  # several plugins may provide it
    return found[0], wanted


def _near(wanted: str, registry: Registry) -> str:
    """Return the next step: a close match or where to look, and the plugins that are not in use."""
    names = (name for kind in registry.kinds for name in registry.names(kind))
    near = close_match(wanted, {*registry.kinds, *FIXED_SECTIONS, *names})
    if not near.startswith("did you mean"):
        near = _near_key(wanted, registry) or "`cm3 kinds` lists all"
    return registry.with_reasons(near)


def _near_key(wanted: str, registry: Registry) -> str:
    """Return the components that have a key of about this name; "" if there is none."""
    owners: dict[str, list[str]] = {}
    for kind in registry.kinds:
        for shown, full in _components_of(kind, registry):
            for key in hints(registry.config_class(kind, full)):
                owners.setdefault(key, []).append(f"{kind}/{shown}")
    for section, config_class in FIXED_SECTIONS.items():
        for field in init_fields(config_class):
            owners.setdefault(field.name, []).append(section)
    near = close_match(wanted.rpartition(".")[2], owners)
    if not near.startswith("did you mean"):
        return ""
    key = near.split("'")[1]
    return f"did you mean the key {key!r}? `cm3 describe {owners[key][0]}` explains it"


#: An entry of an `Args:` section: one or more names, and the beginning of the text.
_ENTRY = re.compile(r"(?P<names>\w+(?:, *\w+)*): *(?P<text>.*)")


@dataclass(frozen=True)
class Key:
    """A key of a recipe's section.

    Args:
        name: the key; "training.steps" is a key of the nested dataclass `training`.
        type: its annotation in readable form, see `shown_type`.
        default: its default as a YAML value; None if there is none, see `required`.
        required: whether the recipe must give it.
        text: its documentation, in one line; "" if it has none.
        documented_by: name of the class whose docstring documents it, "" if none does.
    """

    name: str
    type: str
    default: Any
    required: bool
    text: str
    documented_by: str


def keys_of(config_class: type[Any]) -> list[Key]:
    """Return every key that a recipe may give, in the order of the dataclass's fields.

    The keys of a nested dataclass follow it."""
    return list(_keys(config_class, None, ""))


def _keys(config_class: type[Any], instance: object, prefix: str) -> Iterator[Key]:
    annotations = hints(config_class)
    documented = [(parent.__name__, arguments(parent)) for parent in config_class.__mro__]
    for item in init_fields(config_class):
        annotation = annotations[item.name]
        owner, text = next(
            ((name, texts[item.name]) for name, texts in documented if item.name in texts), ("", "")
        )
        start = default(item) if instance is None else getattr(instance, item.name)
        required = start is MISSING
        yield Key(
            prefix + item.name,
            shown_type(annotation),
            None if required else to_plain(start),
            required,
            text,
            owner,
        )
        inner = nested_dataclass(annotation)
        if inner is not None:
            yield from _keys(
                inner, start if isinstance(start, inner) else None, f"{prefix}{item.name}."
            )


def docstring(config_class: type[Any]) -> str:
    """Return the class's own docstring, or "": one generated by `dataclass` does not count."""
    text = config_class.__dict__.get("__doc__") or ""
    return "" if text.startswith(f"{config_class.__name__}(") else inspect.cleandoc(text)


def summary(text: str) -> str:
    """Return the first paragraph of a docstring, in one line.

    >>> summary('''Bytes\\n    of UTF-8.\\n\\n    More.''')
    'Bytes of UTF-8.'
    """
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def arguments(config_class: type[Any]) -> dict[str, str]:
    """Return name -> text of the `Args:` section of the class's own docstring, each text in one line."""
    return arguments_in(docstring(config_class))


def arguments_in(text: str) -> dict[str, str]:
    """Return the same for a docstring.

    >>> arguments_in('''Samples.
    ...
    ...     Args:
    ...         temperature: divides the logits,
    ...             0 takes the most probable.
    ...         top_k, top_p: kept.
    ... ''')
    {'temperature': 'divides the logits, 0 takes the most probable.', 'top_k': 'kept.', 'top_p': 'kept.'}
    """
    lines = inspect.cleandoc(text).splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, list[str]] = {}
    current: list[list[str]] = []
    margin: int | None = None
    for line in lines[lines.index("Args:") + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else margin
        if indent == 0 or indent < margin:
            break  # another section
        entry = _ENTRY.fullmatch(line.strip()) if indent == margin else None
        if entry is not None:
            names = entry["names"].replace(" ", "").split(",")
            current = [found.setdefault(name, []) for name in names]
            line = entry["text"]
        for text_lines in current:
            text_lines.append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}
