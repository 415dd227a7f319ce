"""The registry: the available components, and the plugin that provides each. Imports no torch.

`cm3core.plugins.discovery` fills it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3core import interfaces as base
from cm3core._version import how_to_install, is_ours
from cm3core.arguments import checked
from cm3core.errors import PluginError, close_match
from cm3core.plugins.info import DISABLE_VARIABLE, PluginInfo
from cm3core.plugins.kinds import KINDS, Kind

__all__ = [
    "DISABLE_VARIABLE",
    "KINDS",
    "PluginInfo",
    "Registry",
    "plugin_versions",
]


class Registry:
    """The kinds, and the components and commands of all usable plugins, as a plain value; none is
    global.

    Attributes:
        plugins: all plugins, also those that can't be used.
        kinds: name -> kind: the core's, in the order of recipes, and behind them those of plugins.
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
        """Add the kinds that a plugin brings. Completes the plugin's `info`."""
        info.kinds = [kind.name for kind in kinds]
        self.kinds.update({kind.name: kind for kind in kinds})

    def remove_kinds(self, info: PluginInfo) -> None:
        """Take the kinds of a plugin out again, which can't be used."""
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
            brought = next(info for info in self.plugins if info.name == plugin).components.get(
                kind, []
            )
            raise PluginError(
                place,
                f"the plugin {plugin!r} provides no {kind} {short!r}",
                close_match(short, brought),
            )
        if len(found) > 1:
            # nobody wants to do without what is bundled
            own = {info.name for info in self.plugins if is_ours(info.distribution)}
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
                    f"the distribution {distribution} has the {kind} {name!r}, and is not installed or not in use",
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
        """Return which of the plugins that provide a component is meant by one's name. Among our own, a component
        may have moved from one distribution to another."""
        if plugin in found:
            return plugin
        own = {info.name for info in self.plugins if is_ours(info.distribution)}
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
        found = self._commands.get(name, {})
        if not found:
            return None
        # a documented command stays what it is
        own = {
            info.name: found[info.name]
            for info in self.plugins
            if info.name in found and is_ours(info.distribution)
        }
        found = own or found
        if len(found) > 1:
            raise PluginError(
                f"command {name!r}",
                f"comes from several plugins: {', '.join(found)}",
                f"leave out the others with {DISABLE_VARIABLE}",
            )
        owner, target = next(iter(found.items()))
        return _load_function(f"command {name!r}", owner, target)

    def benchmarks(self) -> list[Callable[..., Any]]:
        """Return the functions that add to `cm3 bench kernels`, in order of discovery."""
        return [
            _load_function(f"benchmark {name!r}", owner, target)
            for owner, name, target in self._benchmarks
        ]

    @checked(PluginError)
    def with_reasons(self, step: str, kind: str | None = None) -> str:
        """Return the next step, followed by every plugin that is not in use.

        With a `kind`, plugins that provide none of it are left out."""
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


def _load_function(place: str, owner: str, target: str) -> Callable[..., Any]:
    """Return the function that a plugin names as "module:function"."""
    module, _, function = target.partition(":")
    try:
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            place,
            f"the plugin {owner!r} names {target!r}, which can't be imported: {error}",
            "report it to the plugin's author",
        ) from error
    if not callable(loaded):
        raise PluginError(
            place,
            f"the plugin {owner!r} names {target!r}, which is not a function",
            "report it to the plugin's author",
        )
    return loaded


@checked(PluginError)
def moved_to(plugins: Iterable[PluginInfo], kind: str, name: str) -> str:
    """Return the distribution that now has a component of a plugin in use, by its `CM3_BESIDE`; "": none is known."""
    key = f"{kind}/{name}"
    return next((info.beside[key] for info in plugins if key in info.beside), "")


def plugin_versions(plugins: Iterable[PluginInfo]) -> dict[str, str]:
    """Return name -> version of the plugins in use, to store with a checkpoint."""
    return {info.name: info.version for info in plugins if info.status == "loaded"}
