"""The available components, the plugins that provide them, and the lookup of components by name.

`cm3core.plugins.discovery` fills the registry. Imports no torch.

A recipe may write `sampler: {name: cfg}` without a plugin, and a plugin installed later may provide a `cfg` too. The
name keeps its meaning: a checkpoint stores the provider of each component (`components.json`), and a recipe shipped
    with
a distribution means that distribution's components. A text's `Writer` states its providers; `find` resolves names
accordingly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cm3core import interfaces as base
from cm3core._version import DISTRIBUTION, OUR_DISTRIBUTIONS, how_to_install
from cm3core.arguments import checked
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.files import read_text
from cm3core.interfaces.component import ComponentConfig, ComponentOrigin, broken, set_origin, shown
from cm3core.plugins.info import DISABLE_VARIABLE, PluginInfo, load_function
from cm3core.plugins.kinds import KINDS, Kind

#: Files beside a stored recipe: the providers of its components; the plugins that were in use.
COMPONENTS, PLUGINS = "components.json", "plugins.json"
#: Forms that may be shown as part of a command, because the text is untrusted.
_PLAIN = {
    "name": re.compile(r"([\w-]{1,100}/)?[\w-]{1,100}"),
    "plugin": re.compile(r"[\w.-]{1,100}"),
    "distribution": re.compile(r"([A-Za-z0-9][\w.-]{0,99})?", re.ASCII),
    "version": re.compile(r"[\w.+!-]{0,100}", re.ASCII),
}


@dataclass(frozen=True)
class Provider:
    """The plugin that provided a component.

    Args:
        name: the component's, as the recipe writes it.
        plugin: the plugin's name.
        distribution, version: its name and version for `pip`, "" for a plugin given as a file.
    """

    name: str
    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        """For messages.

        >>> str(Provider("ul2", "ul2", "cm3-ul2", "0.1.0"))
        'ul2 0.1.0 (pip install cm3-ul2)'
        >>> str(Provider("ul2", "my_parts"))
        'my_parts (cm3 --plugin my_parts.py)'
        """
        if not self.distribution:
            return f"{self.plugin} (cm3 --plugin {self.plugin}.py)"
        return f"{self.plugin} {self.version}".rstrip() + f" (pip install {self.distribution})"

    def among(self, owners: Mapping[str, str]) -> str | None:
        """Return which of some plugins this provider is now, None if it is none of them.

        Args:
            owners: plugin -> distribution, of those that provide the component now.
        """
        same = [
            plugin
            for plugin, distribution in owners.items()
            if self.distribution and _same(distribution, self.distribution)
        ]
        if self.plugin in same or (self.plugin in owners and not same):
            return self.plugin
        if same:
            return same[0]
        # a file has no permanent name: it may have been renamed, or become a package
        return next(iter(owners)) if not self.distribution and len(owners) == 1 else None


@dataclass(frozen=True)
class Writer:
    """Which plugins the bare names in a text refer to.

    providers: kind, or key of a component inside another one -> its provider when
        the text was written.
    plugins: name -> version of the plugins that were in use then.
    distribution: preferred if several plugins provide the name; "": none.
    stored: whether keys that are not given may be newer than the text, see `ComponentConfig.earlier`.
    """

    providers: Mapping[str, Provider] = field(default_factory=dict)
    plugins: Mapping[str, str] = field(default_factory=dict)
    distribution: str = ""
    stored: bool = False

    def provider(self, key: str, name: str) -> Provider | None:
        """Return the component's provider, None if unknown."""
        known = self.providers.get(key)
        return known if known is not None and known.name == name else None

    def prefers(self, owners: Mapping[str, str]) -> str | None:
        """Return which of several plugins a bare name refers to, None if unknown.

        Args:
            owners: plugin -> distribution.
        """
        then = [plugin for plugin in owners if plugin in self.plugins]
        own = [
            plugin
            for plugin, distribution in owners.items()
            if self.distribution and _same(distribution, self.distribution)
        ]
        for meant in (then, own):
            if len(meant) == 1:
                return meant[0]
        return None


#: Unknown writer: a user's recipe, or the command line.
ANYONE = Writer()
#: Texts shipped with this distribution.
OURS = Writer(distribution=DISTRIBUTION)


def _same(one: str, other: str) -> bool:
    """Whether two distributions are the same, or both ours, between which a component may have moved."""
    one, other = _normal(one), _normal(other)
    return one == other or (one in OUR_DISTRIBUTIONS and other in OUR_DISTRIBUTIONS)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def dump_providers(providers: Mapping[str, Provider]) -> str:
    """Return the text of `components.json`; see `Writer.providers`."""
    values = {key: asdict(provider) for key, provider in providers.items()}
    return json.dumps(values, indent=1) + "\n"


def read_writer(folder: Path, refuse: Callable[[Path, str], CM3Error]) -> Writer:
    """Return the writer of the recipe stored in `folder`, which resolves its bare names.

    For older folders, only the plugins that were in use are known, or not even these.

    Args:
        folder: a run, a checkpoint or an exported model.
        refuse: makes the error for an unusable file, from its path and the cause.
    """
    try:
        plugins = _read(folder / PLUGINS)
    except (OSError, ValueError, RecursionError):
        plugins = {}  # only a hint, so errors are ignored
    try:
        stored = _read(folder / COMPONENTS)
    except FileNotFoundError:
        stored = {}
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(folder / COMPONENTS, f"can't be read ({error})") from error
    for key, values in stored.items():
        if not _is_provider(values):
            raise refuse(
                folder / COMPONENTS, f"does not say who provided the component {key[:100]!r}"
            )
    return Writer(
        {key: Provider(**values) for key, values in stored.items()},
        {name: version for name, version in plugins.items() if isinstance(version, str)},
        DISTRIBUTION,
        stored=bool(stored or plugins),
    )


def _read(path: Path) -> dict[str, Any]:
    values = json.loads(read_text(path))
    if not isinstance(values, dict):
        raise ValueError("is not a mapping")
    return values


def _is_provider(values: object) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == _PLAIN.keys()
        and all(
            isinstance(values[key], str) and plain.fullmatch(values[key])
            for key, plain in _PLAIN.items()
        )
    )


__all__ = [
    "DISABLE_VARIABLE",
    "KINDS",
    "PluginInfo",
    "Registry",
    "plugin_versions",
]


class Registry:
    """The kinds, and the components and commands of all usable plugins, as a plain value; there is no global
    instance.

    Attributes:
        plugins: all plugins, including unusable ones.
        kinds: name -> kind: the core's, in the order of recipes, followed by those of plugins.
    """

    def __init__(self, kinds: Mapping[str, Kind] = KINDS) -> None:
        self.plugins: list[PluginInfo] = []
        self.kinds: dict[str, Kind] = dict(kinds)
        self._configs: dict[str, dict[str, dict[str, type[base.ComponentConfig]]]] = {}
        self._commands: dict[str, dict[str, str]] = {}
        self._models: dict[str, Path] = {}
        self._benchmarks: list[tuple[str, str, str]] = []

    def add(
        self,
        info: PluginInfo,
        configs: Mapping[str, Mapping[str, type[base.ComponentConfig]]],
        commands: Mapping[str, str],
        models: Mapping[str, Path] | None = None,
        benchmarks: Mapping[str, str] | None = None,
    ) -> None:
        """Add a usable plugin's config classes, commands, models and benchmarks.

        `configs` is kind -> name -> class. Completes the plugin's `info`."""
        info.components = {kind: sorted(brought) for kind, brought in configs.items() if brought}
        info.commands, info.models = sorted(commands), sorted(models or {})
        info.benchmarks = sorted(benchmarks or {})
        self.plugins.append(info)
        for kind, brought in configs.items():
            for name, config_class in brought.items():
                self._configs.setdefault(kind, {}).setdefault(name, {})[info.name] = config_class
        for name, target in commands.items():
            self._commands.setdefault(name, {})[info.name] = target
        self._models.update(
            {f"{info.name}:{name}": folder for name, folder in (models or {}).items()}
        )
        self._benchmarks += [
            (info.name, name, target) for name, target in (benchmarks or {}).items()
        ]

    def add_kinds(self, info: PluginInfo, kinds: Sequence[Kind]) -> None:
        """Add the kinds that a plugin defines. Completes the plugin's `info`."""
        info.kinds = [kind.name for kind in kinds]
        self.kinds.update({kind.name: kind for kind in kinds})

    def remove_kinds(self, info: PluginInfo) -> None:
        """Remove the kinds of a plugin that turned out to be unusable."""
        for name in info.kinds:
            del self.kinds[name]
        info.kinds = []

    def add_all(self, other: Registry) -> None:
        """Add everything that the plugins of another registry provide."""
        for info in other.plugins:
            self.add_kinds(info, [other.kinds[name] for name in info.kinds])
            self.add(
                info,
                {
                    kind: {name: other.config_class(kind, f"{info.name}/{name}") for name in names}
                    for kind, names in info.components.items()
                },
                {name: other._commands[name][info.name] for name in info.commands},
                {name: other._models[f"{info.name}:{name}"] for name in info.models},
                {name: target for owner, name, target in other._benchmarks if owner == info.name},
            )

    @checked(PluginError)
    def names(self, kind: str) -> list[str]:
        """Return the names of a kind's components, sorted, without duplicates."""
        return sorted(self._configs.get(kind, {}))

    @checked(PluginError)
    def owners(self, kind: str, name: str) -> list[str]:
        """Return the plugins that provide the component, in order of discovery."""
        return list(self._configs.get(kind, {}).get(name, {}))

    @checked(PluginError)
    def config_class(
        self, kind: str, name: str, *, place: str | None = None
    ) -> type[base.ComponentConfig]:
        """Return the config class of a component.

        Args:
            kind: one of `kinds`.
            name: `name`, or `plugin/name` if several plugins provide it.
            place: where the name was written, for the error.

        Raises:
            PluginError: the name is unknown, or several plugins provide it.
        """
        place = place or f"{kind} {name!r}"
        plugin, _, short = name.rpartition("/")
        found = self._configs.get(kind, {}).get(short, {})
        if plugin:
            if (owner := self._owner(plugin, found)) is not None:
                return found[owner]
            loaded = [info.name for info in self.plugins if info.status == "loaded"]
            if plugin not in loaded:
                raise PluginError(
                    place,
                    f"no plugin {plugin!r} is loaded",
                    self.with_reasons(close_match(plugin, loaded)),
                )
            raise PluginError(
                place,
                f"the plugin {plugin!r} provides no {kind} {short!r}",
                close_match(short, _info(self, plugin).components.get(kind, [])),
            )
        if len(found) > 1:
            # bundled plugins are not suggested for removal
            own = {info.name for info in self.plugins if info.distribution in OUR_DISTRIBUTIONS}
            other = next((owner for owner in found if owner not in own), next(iter(found)))
            raise PluginError(
                place,
                f"the {kind} {name!r} comes from several plugins: {', '.join(found)}",
                f"write {' or '.join(f'{owner}/{name}' for owner in found)}, or leave one out: "
                f"{DISABLE_VARIABLE}={other}",
            )
        if not found:
            if distribution := moved_to(self.plugins, kind, name):
                raise PluginError(
                    place,
                    f"the distribution {distribution} provides the {kind} {name!r}, but is not installed or not in use",
                    how_to_install(distribution),
                )
            if "." in name:
                step = "recipes name components, not Python classes; `cm3 --plugin FILE.py ...` registers a class from a file"
                raise PluginError(place, f"no {kind} is called {name!r}", step)
            raise PluginError(
                place,
                f"no {kind} is called {name!r}",
                self.with_reasons(close_match(name, self.names(kind)), kind),
            )
        return next(iter(found.values()))

    def _owner(self, plugin: str, found: Mapping[str, object]) -> str | None:
        """Return which of the plugins that provide a component is meant by a plugin's name. Among our own plugins, a
        component may have moved from one distribution to another."""
        if plugin in found:
            return plugin
        own = {info.name for info in self.plugins if info.distribution in OUR_DISTRIBUTIONS}
        return next((one for one in found if one in own), None) if plugin in own else None

    def models(self) -> dict[str, Path]:
        """Return the trained models that plugins ship: "PLUGIN:NAME" -> folder."""
        return dict(self._models)

    def commands(self) -> list[str]:
        """Return the names of the sub-commands that plugins provide, sorted."""
        return sorted(self._commands)

    @checked(PluginError)
    def command(self, name: str) -> Callable[..., Any] | None:
        """Return the function that sets up sub-command `name`; None if no plugin provides it."""
        found = self._command_owners(name)
        if not found:
            return None
        if len(found) > 1:
            raise PluginError(
                f"command {name!r}",
                f"comes from several plugins: {', '.join(found)}",
                f"leave out the others with {DISABLE_VARIABLE}",
            )
        owner, target = next(iter(found.items()))
        return load_function(f"command {name!r}", owner, target)

    def command_targets(self) -> dict[str, tuple[str, str]]:
        """Return the commands that exactly one plugin provides: name -> the plugin, and its function as
        "module:function"."""
        owners = {name: self._command_owners(name) for name in self._commands}
        return {name: next(iter(one.items())) for name, one in owners.items() if len(one) == 1}

    def _command_owners(self, name: str) -> dict[str, str]:
        """The plugins that provide a command, each with its function; only ours, if it is one of them: documented
        commands can't be replaced."""
        found = self._commands.get(name, {})
        own = {
            info.name: found[info.name]
            for info in self.plugins
            if info.name in found and info.distribution in OUR_DISTRIBUTIONS
        }
        return own or dict(found)

    def benchmarks(self) -> list[Callable[..., Any]]:
        """Return the functions that add to `cm3 bench kernels`, in order of discovery."""
        return [
            load_function(f"benchmark {name!r}", owner, target)
            for owner, name, target in self._benchmarks
        ]

    @checked(PluginError)
    def with_reasons(self, step: str, kind: str | None = None) -> str:
        """Return the next step, followed by every plugin that is not in use.

        With a `kind`, only plugins that may provide it are listed."""
        lost = [
            f"the plugin {info.name!r} is {info.status}: {info.reason}"
            for info in self.plugins
            if info.status != "loaded"
            and (
                kind is None
                or info.hooks is None
                or kind not in self.kinds
                or self.kinds[kind].hook in info.hooks
            )
        ]
        return "; ".join([step, *lost])


def moved_to(plugins: Iterable[PluginInfo], kind: str, name: str) -> str:
    """Return the distribution that now has a component of a plugin in use, from its `CM3_BESIDE`; "": unknown."""
    key = f"{kind}/{name}"
    return next((info.beside[key] for info in plugins if key in info.beside), "")


def sort_plugins(registry: Registry, place: Callable[[PluginInfo], int]) -> None:
    """Order a registry's plugins, and with them the owners of each component."""
    registry.plugins.sort(key=place)
    order = {info.name: number for number, info in enumerate(registry.plugins)}
    for names in registry._configs.values():
        for name, owners in names.items():
            names[name] = dict(sorted(owners.items(), key=lambda one: order[one[0]]))


@checked(PluginError)
def plugin_versions(plugins: Iterable[PluginInfo]) -> dict[str, str]:
    """Return name -> version of the plugins in use, to store with a checkpoint."""
    return {info.name: info.version for info in plugins if info.status == "loaded"}


def find(
    registry: Registry, kind: str, name: str, *, place: str, writer: Writer = ANYONE, key: str = ""
) -> type[base.ComponentConfig]:
    """Return the config class of a component.

    Args:
        registry: the available components.
        kind: one of `KINDS`.
        name: `name` or `plugin/name`.
        place: where it was written, for the error.
        writer: resolves bare names.
        key: for a component inside another one, its place in the recipe ("retriever.parts.words").

    Raises:
        PluginError: the name is unknown, the component's provider is not in use, or several
            plugins provide it.
    """
    short = name.rpartition("/")[2]
    owners = {owner: _info(registry, owner).distribution for owner in registry.owners(kind, short)}
    steps = [step for one in registry.plugins if (step := one.gone.get(f"{kind}/{short}"))]
    if steps and not owners:
        raise PluginError(place, f"there is no {kind} {short!r} any more", steps[0])
    if provider := writer.provider(key or kind, name):
        meant = provider.among(owners)
        if meant is None and not owners and moved_to(registry.plugins, kind, short):
            return registry.config_class(kind, short, place=place)  # its error says where it is now
        if meant is None:
            raise PluginError(
                place,
                f"the {kind} {short!r} was provided by {provider}, {_absence(registry, provider)}",
                registry.with_reasons("install or enable it, and repeat the command"),
            )
        return registry.config_class(kind, f"{meant}/{short}")
    if name == short and len(owners) > 1 and (meant := writer.prefers(owners)):
        return registry.config_class(kind, f"{meant}/{short}")
    try:
        return registry.config_class(kind, name, place=place)
    except PluginError as error:
        gone = [
            f"the plugin {plugin!r} {version} was in use when this was written, but is not now"
            for plugin, version in writer.plugins.items()
            if plugin not in (*_loaded(registry), "torch")
        ]
        if owners or not gone:
            raise
        raise PluginError(place, error.cause, "; ".join([error.next_step, *gone])) from None


def finder(registry: Registry) -> Callable[[str, str, str], type[base.ComponentConfig]]:
    """Return a function that finds a component by kind, name and the key that names it, for a single call."""
    return lambda kind, name, place: registry.config_class(kind, name, place=place)


def provider_of(registry: Registry, kind: str, name: str, config: object) -> Provider | None:
    """Return the provider of a recipe's component, to be stored with it; None if no plugin provides it.

    Args:
        registry: the available components.
        kind, name: as the recipe writes them.
        config: the component's; determines the plugin that a bare name refers to.
    """
    plugin, _, short = name.rpartition("/")
    for owner in registry.owners(kind, short):
        config_class = registry.config_class(kind, f"{owner}/{short}")
        # compare names, because a plugin file becomes a new module each time it is loaded
        if plugin in ("", owner) and class_name(config_class) == class_name(type(config)):
            info = _info(registry, owner)
            return Provider(name, owner, info.distribution, info.version)
    return None


def class_name(config_class: type[Any]) -> str:
    """Return a class's module and name."""
    return f"{config_class.__module__}:{config_class.__qualname__}"


def _absence(registry: Registry, provider: Provider) -> str:
    """Return why a provider's component is missing, worded as the end of a sentence."""
    if provider.plugin not in _loaded(registry):
        return "which is not in use"
    now = f"{provider.plugin} {_info(registry, provider.plugin).version}".rstrip()
    return f"and {now} does not provide it"


def _loaded(registry: Registry) -> list[str]:
    return [info.name for info in registry.plugins if info.status == "loaded"]


def _info(registry: Registry, plugin: str) -> PluginInfo:
    return next(
        info for info in registry.plugins if info.name == plugin and info.status == "loaded"
    )


# Find components by flags of their config classes, so that the core knows none by name.
#
# The flags are `ComponentConfig.is_default`, `SamplerConfig.edits` and `.structures`, and
# `DocumentSourceConfig.reads`.


def marked(registry: Registry, kind: str, attribute: str) -> dict[str, object]:
    """Return a kind's components whose own config class sets a class variable to a true value.

    Returns name -> its value, sorted by name (`plugin/name` if several plugins provide it).
    Inherited values don't count: a plugin that derives from a bundled config provides another
    component, which must not take over its role.
    """
    found: dict[str, object] = {}
    for name in registry.names(kind):
        owners = registry.owners(kind, name)
        for full_name in [name] if len(owners) == 1 else [f"{owner}/{name}" for owner in owners]:
            if value := vars(registry.config_class(kind, full_name)).get(attribute):
                found[full_name] = value
    return found


def default_name(registry: Registry, kind: str, *, place: str) -> str:
    """Return a kind's default component, for when one is needed and none is named.

    It is the first whose config sets `is_default`.

    Raises:
        PluginError: there is none; `place` is where one could be named.
    """
    for name in marked(registry, kind, "is_default"):
        return name
    raise PluginError(
        place,
        f"no {kind} is named, and no plugin in use provides a default one",
        registry.with_reasons(close_match("", registry.names(kind)), kind),
    )


# The result of a config's `build`: checked to implement its kind, and marked with the plugin that provides it, so
# that its errors name the plugin.


T = TypeVar("T")


def built(component: T, config: ComponentConfig, registry: Registry | None = None) -> T:
    """Return the component that the config's `build` or `load` returned.

    Args:
        component: the result.
        config: the config.
        registry: knows the config's plugin; None: errors name its class.

    Raises:
        PluginError: it is not an implementation of the kind's interface.
    """
    kind = (KINDS if registry is None else registry.kinds).get(config.kind)
    origin = None if registry is None else origin_of(registry, config)
    if kind is not None and not isinstance(component, kind.interface_class):
        if origin is not None:
            set_origin(config, origin)
        raise broken(config, "build", f"it returned {shown(component)}, not a {kind.interface}")
    if origin is not None:
        set_origin(component, origin)
    return component


def origin_of(registry: Registry, config: ComponentConfig) -> ComponentOrigin | None:
    """Return the plugin and the name of a config; None if no plugin provides its class."""
    wanted = class_name(type(config))
    for name in registry.names(config.kind):
        for owner in registry.owners(config.kind, name):
            if class_name(registry.config_class(config.kind, f"{owner}/{name}")) == wanted:
                return ComponentOrigin(owner, config.kind, name)
    return None
