"""Discovery: which components there are, which plugin brings each, and why a plugin can't be used.
Imports no torch.

Two of the four phases happen here. Discover: entry points of the group `cm3core.plugins`, and files
given by `--plugin`. Describe: each plugin's hooks are asked for its config classes. Composing
(`cm3core.recipe`), building (`cm3core.build`) follow.

pluggy's `load_setuptools_entrypoints` is not used: one broken plugin would end the program, and a
second one of the same name is dropped in silence. Here each entry point is loaded by itself. One
that can't be used costs a warning line, is listed with its reason by `cm3 plugin list`, and the
reason is repeated when a recipe asks for a name that nobody else brings. A plugin is used whole or
not at all.

Environment: `CM3_STRICT_PLUGINS=1` raises at the first broken plugin; `CM3_DISABLE_PLUGINS=a,b`
leaves plugins out.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from cm3core import hookspecs
from cm3core import interfaces as base
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.plugins import describe
from cm3core.plugins.kinds import KINDS, Kind

GROUP = "cm3core.plugins"
STRICT_VARIABLE = "CM3_STRICT_PLUGINS"
DISABLE_VARIABLE = "CM3_DISABLE_PLUGINS"

__all__ = [
    "KINDS",
    "Kind",
    "PluginInfo",
    "Registry",
    "load_registry",
    "plugin_of_file",
    "plugin_versions",
    "registry_of_one",
]

logger = logging.getLogger("cm3core.plugins")


@dataclass
class PluginInfo:
    """What is known of one plugin.

    Args:
        name: the entry point's name, or the file's without `.py`.
        version: its distribution's, "" for a file.
        origin: distribution and module, or the file.
        status: "loaded", "broken" or "disabled".
        components: kind -> names that it brings.
        commands: sub-commands that it brings.
        models: names of the trained models that it ships.
        benchmarks: names of what it adds to `cm3 bench kernels`.
        deprecated: what it does that will not work for ever, a line each.
        reason: one line that says why it is broken or disabled, else "".
        traceback: of the error that broke it, else "".
    """

    name: str
    version: str
    origin: str
    status: str = "loaded"
    components: dict[str, list[str]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    benchmarks: list[str] = field(default_factory=list)
    deprecated: list[str] = field(default_factory=list)
    reason: str = ""
    traceback: str = ""


class Registry:
    """The components and commands of all usable plugins. A plain value that is passed along; there
    is no global one."""

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self._configs: dict[str, dict[str, dict[str, type[base.ComponentConfig]]]] = {
            kind: {} for kind in KINDS
        }
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
        """Take in a usable plugin's config classes (kind -> name -> class), commands, models and
        benchmarks, and complete its `info`."""
        info.components = {kind: sorted(brought) for kind, brought in configs.items() if brought}
        info.commands, info.models = sorted(commands), sorted(models or {})
        info.benchmarks = sorted(benchmarks or {})
        self.plugins.append(info)
        for kind, brought in configs.items():
            for name, config_class in brought.items():
                self._configs[kind].setdefault(name, {})[info.name] = config_class
        for name, target in commands.items():
            self._commands.setdefault(name, {})[info.name] = target
        self._models.update(
            {f"{info.name}:{name}": folder for name, folder in (models or {}).items()}
        )
        self._benchmarks += [
            (info.name, name, target) for name, target in (benchmarks or {}).items()
        ]

    def names(self, kind: str) -> list[str]:
        """Names of a kind's components, sorted; a name that several plugins bring stands there
        once."""
        return sorted(self._configs[kind])

    def owners(self, kind: str, name: str) -> list[str]:
        """Plugins that bring the component, in order of discovery."""
        return list(self._configs[kind].get(name, {}))

    def config_class(
        self, kind: str, name: str, *, place: str | None = None
    ) -> type[base.ComponentConfig]:
        """The config class of a component.

        Args:
            kind: one of `KINDS`.
            name: `name`, or `plugin/name` where several plugins bring it.
            place: where the name was written, for the error.

        Raises:
            PluginError: the name is not known, or several plugins bring it.
        """
        place = place or f"{kind} {name!r}"
        plugin, _, short = name.rpartition("/")
        found = self._configs[kind].get(short, {})
        if plugin:
            if plugin in found:
                return found[plugin]
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
                f"the plugin {plugin!r} brings no {kind} {short!r}",
                close_match(short, brought),
            )
        if len(found) > 1:
            raise PluginError(
                place,
                f"the {kind} {name!r} comes from several plugins: {', '.join(found)}",
                "write " + " or ".join(f"{owner}/{name}" for owner in found),
            )
        if not found:
            if "." in name:
                step = "recipes name components, not Python classes; `cm3 --plugin FILE.py ...` registers a class from a file"
                raise PluginError(place, f"no {kind} is called {name!r}", step)
            raise PluginError(
                place,
                f"no {kind} is called {name!r}",
                self.with_reasons(close_match(name, self._configs[kind])),
            )
        return next(iter(found.values()))

    def models(self) -> dict[str, Path]:
        """Trained models that plugins ship: "PLUGIN:NAME" -> folder."""
        return dict(self._models)

    def commands(self) -> list[str]:
        """Names of the sub-commands that plugins bring, sorted."""
        return sorted(self._commands)

    def command(self, name: str) -> Callable[..., Any] | None:
        """The function that sets up the sub-command `name`; None when no plugin brings it."""
        found = self._commands.get(name, {})
        if not found:
            return None
        if len(found) > 1:
            raise PluginError(
                f"command {name!r}",
                f"comes from several plugins: {', '.join(found)}",
                f"leave out the others with {DISABLE_VARIABLE}",
            )
        owner, target = next(iter(found.items()))
        return _load_function(f"command {name!r}", owner, target)

    def benchmarks(self) -> list[Callable[..., Any]]:
        """The functions that add ops and providers to `cm3 bench kernels`, in order of
        discovery."""
        return [
            _load_function(f"benchmark {name!r}", owner, target)
            for owner, name, target in self._benchmarks
        ]

    def with_reasons(self, step: str) -> str:
        """The next step, and after it every plugin that might have brought the name but is not in
        use."""
        lost = [
            f"the plugin {info.name!r} is {info.status}: {info.reason}"
            for info in self.plugins
            if info.status != "loaded"
        ]
        return "; ".join([step, *lost])


def _load_function(place: str, owner: str, target: str) -> Callable[..., Any]:
    """The function that a plugin names as "module:function"."""
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
            f"the plugin {owner!r} names {target!r}, which is no function",
            "report it to the plugin's author",
        )
    return loaded


def load_registry(
    files: Sequence[Path] = (), *, environ: Mapping[str, str] = os.environ
) -> Registry:
    """Find every plugin, ask each what it brings, and return the registry.

    Args:
        files: plugin modules given as files (`cm3 --plugin`). They were asked for by name, so a
            broken one raises.
        environ: where the two variables are read.

    Raises:
        PluginError: a file is broken, or any plugin is and `CM3_STRICT_PLUGINS=1`.
    """
    registry, pluggy_manager = Registry(), pluggy.PluginManager(hookspecs.PROJECT)
    pluggy_manager.add_hookspecs(hookspecs)
    strict = environ.get(STRICT_VARIABLE, "") not in {"", "0"}
    disabled = {
        name.strip() for name in environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()
    }
    for info, loader in _discover(files):
        if info.name in disabled:
            info.status, info.reason = "disabled", f"named in {DISABLE_VARIABLE}"
            registry.plugins.append(info)
            continue
        try:
            _describe(info, loader, registry, pluggy_manager)
        except (Exception, SystemExit) as error:
            # a plugin's import may raise anything, and must not end the program
            if not loader.asked_for and not strict:
                _set_broken(info, error)
                registry.plugins.append(info)
                logger.warning(
                    "plugin %r (%s) is not used: %s [cm3 plugin list -v]",
                    info.name,
                    info.origin,
                    info.reason,
                )
                continue
            raise PluginError(
                f"plugin {info.name!r} ({info.origin})", _one_line(error), _next_step(error)
            ) from error
    for name in sorted(disabled - {info.name for info in registry.plugins}):
        logger.warning(
            "%s names %r, which is not installed: %s",
            DISABLE_VARIABLE,
            name,
            close_match(name, [info.name for info in registry.plugins]),
        )
    return registry


@dataclass(frozen=True)
class _Loader:
    """How a plugin's module is got, and whether the user named it (then errors are raised)."""

    load: Callable[[], object]
    asked_for: bool = False


def _discover(files: Sequence[Path]) -> Iterator[tuple[PluginInfo, _Loader]]:
    """Every plugin there may be: installed ones sorted by name and distribution, then files.
    Nothing is imported."""
    for point in sorted(entry_points(group=GROUP), key=_sort_key):
        distribution, version = _distribution(point)
        yield PluginInfo(point.name, version, f"{distribution}, {point.value}"), _Loader(point.load)
    for path in files:
        yield (
            PluginInfo(Path(path).stem, "", str(path)),
            _Loader(partial(plugin_of_file, Path(path)), asked_for=True),
        )


def _sort_key(point: EntryPoint) -> tuple[str, str, str]:
    return point.name, _distribution(point)[0], point.value


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that declares the entry point."""
    return (
        (point.dist.name, point.dist.version)
        if point.dist is not None
        else ("unknown distribution", "")
    )


def plugin_of_file(path: Path) -> ModuleType:
    """Import a plugin's module from a file, under a name that can't hide another module."""
    name = f"cm3_plugin_file_{path.stem}"
    if not path.is_file():
        raise PluginError(
            str(path), "there is no such file", "give --plugin the path of a Python file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(str(path), "is no Python file", "give --plugin the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up to resolve annotations
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def registry_of_one(info: PluginInfo, load: Callable[[], object]) -> Registry:
    """A registry with one plugin alone, whatever is installed; raises what is wrong with it."""
    registry, pluggy_manager = Registry(), pluggy.PluginManager(hookspecs.PROJECT)
    pluggy_manager.add_hookspecs(hookspecs)
    _describe(info, _Loader(load), registry, pluggy_manager)
    return registry


def _describe(
    info: PluginInfo, loader: _Loader, registry: Registry, pluggy_manager: pluggy.PluginManager
) -> None:
    """Import one plugin, check it, ask its hooks and add it to the registry; raises whatever is
    wrong with it."""
    for other in registry.plugins:
        if other.name == info.name:
            raise PluginError(
                info.name,
                f"another plugin has the name {info.name!r}: {other.origin}",
                f"rename the entry point or the file, or uninstall one of the two ({info.origin})",
            )
    plugin = loader.load()
    describe.check_api(info.name, plugin)
    for other in registry.plugins:
        if pluggy_manager.get_plugin(other.name) is plugin:
            raise PluginError(
                info.name,
                f"is the same module as the plugin {other.name!r}",
                "declare one entry point for it",
            )
    info.deprecated = describe.register(info.name, plugin, pluggy_manager)
    try:
        describe.check_hooks(info.name, plugin, pluggy_manager)
        configs = {kind: describe.ask(info.name, plugin, kind, pluggy_manager) for kind in KINDS}
        commands, benchmarks = (
            describe.ask_functions(info.name, plugin, hook, pluggy_manager)
            for hook in (describe.COMMANDS_HOOK, describe.BENCHMARKS_HOOK)
        )
        models = describe.ask_models(info.name, plugin, pluggy_manager)
    except BaseException:
        pluggy_manager.unregister(plugin)
        raise
    for line in info.deprecated:
        logger.warning("plugin %r (%s): %s; update it", info.name, info.origin, line)
    registry.add(info, configs, commands, models, benchmarks)


def _set_broken(info: PluginInfo, error: BaseException) -> None:
    info.status, info.reason = "broken", _one_line(error)
    info.traceback = "".join(traceback.format_exception(error))


def _one_line(error: BaseException) -> str:
    """A reason in one line: our own errors by their cause, others by type and first line."""
    if isinstance(error, CM3Error):
        return error.cause
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _next_step(error: BaseException) -> str:
    return error.next_step if isinstance(error, CM3Error) else "correct the plugin, or uninstall it"


def plugin_versions(plugins: Iterable[PluginInfo]) -> dict[str, str]:
    """Name -> version of the plugins in use: what is stored beside a checkpoint."""
    return {info.name: info.version for info in plugins if info.status == "loaded"}
