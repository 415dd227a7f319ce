"""Discovery: find plugins, ask each what it provides, and report why one can't be used.

Imports no torch. Two of the four phases happen here. Discover: entry points of the group
`cm3core.plugins`, and files given by `--plugin`. Describe: each plugin's hooks are called, first for the
kinds that it defines, then for its config classes. Composing (`cm3core.recipe`) and building (`cm3run.build`) follow.

pluggy's `load_setuptools_entrypoints` is not used: it would let one broken plugin end the program, and
silently drop the second of two plugins with the same name. Here each entry point is loaded separately. A plugin
that can't be used costs one warning line and is listed with the reason by `cm3 plugin list`; the
reason is repeated when a recipe asks for a name that no other plugin provides. A plugin is used
entirely or not at all.

Environment: `CM3_STRICT_PLUGINS=1` raises at the first broken plugin; `CM3_DISABLE_PLUGINS=a,b`
leaves plugins out.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from cm3core import hookspecs
from cm3core._version import OUR_DISTRIBUTIONS
from cm3core.arguments import checked
from cm3core.errors import CM3Error, PluginError, close_match
from cm3core.plugins import describe
from cm3core.plugins.info import DISABLE_VARIABLE, STRICT_VARIABLE, PluginInfo
from cm3core.plugins.kinds import KINDS, Kind
from cm3core.plugins.registry import Registry, sort_plugins

#: Group of the entry points that declare plugins.
GROUP = "cm3core.plugins"

#: A hook's name in a module's source.
_HOOK = re.compile(r"\bcm3_[a-z_]+\b")
_DEFINED = re.compile(r"\bdef (cm3_\w+)")
#: Prefix of the module names of plugin files, and their attribute with the source that was run.
FILE_MODULE, SOURCE = "cm3_plugin_file_", "__cm3_source__"

logger = logging.getLogger("cm3core.plugins")


@checked(PluginError)
def load_registry(
    files: Sequence[Path] = (), *, environ: Mapping[str, str] | None = None
) -> Registry:
    """Find all plugins, ask each what it provides, and return the registry.

    Args:
        files: plugin modules given as files (`cm3 --plugin`). Since the user named them, a broken one
            raises.
        environ: source of the two environment variables; None: `os.environ`. (As a default
            argument, its values, including tokens, would be shown by `help`.)

    Raises:
        PluginError: a file is broken, or any plugin is broken and `CM3_STRICT_PLUGINS=1`.
    """
    environ = os.environ if environ is None else environ
    registry = Registry()
    strict = environ.get(STRICT_VARIABLE, "") not in {"", "0"}
    disabled = {
        name.strip() for name in environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()
    }
    found = list(_discover(files))
    opened: list[_Opened] = []
    for info, loader in found:
        if info.name in disabled:
            info.status, info.reason = "disabled", f"named in {DISABLE_VARIABLE}"
            info.hooks = _hooks_in(loader.module)
            registry.plugins.append(info)
            continue
        with _may_be_broken(info, loader, registry, strict):
            opened.append(_open(info, loader, registry, opened))
    # those that define kinds first, because others may provide components of these
    for one in sorted(opened, key=lambda one: not one.info.kinds):
        with _may_be_broken(one.info, one.loader, registry, strict):
            _describe(one, registry)
    place = {id(info): number for number, (info, _) in enumerate(found)}
    sort_plugins(registry, lambda info: place[id(info)])
    for name in sorted(disabled - {info.name for info in registry.plugins}):
        logger.warning(
            "%s names %r, which is not installed: %s",
            DISABLE_VARIABLE,
            name,
            close_match(name, [info.name for info in registry.plugins]),
        )
    return registry


@contextmanager
def _may_be_broken(
    info: PluginInfo, loader: _Loader, registry: Registry, strict: bool
) -> Iterator[None]:
    """A context in which an error marks the plugin as broken, unless the user asked for it by name."""
    try:
        yield
    except (Exception, SystemExit) as error:
        # a plugin's import may raise anything, and must not end the program
        if loader.asked_for or strict:
            raise PluginError(
                f"plugin {info.name!r} ({info.origin})", _one_line(error), _next_step(error)
            ) from error
        registry.remove_kinds(info)
        _set_broken(info, error)
        info.hooks = _hooks_in(loader.module)
        registry.plugins.append(info)
        logger.warning(
            "plugin %r (%s) is not used: %s [cm3 plugin list -v]",
            info.name,
            info.origin,
            info.reason,
        )


@dataclass(frozen=True)
class _Loader:
    """How to load a plugin's module, and whether the user named it (errors are then raised).

    `module` is its dotted name, "" for a file."""

    load: Callable[[], object]
    asked_for: bool = False
    module: str = ""


@dataclass(frozen=True)
class _Opened:
    """An imported plugin of which only the kinds are known yet."""

    info: PluginInfo
    loader: _Loader
    plugin: object


def _discover(files: Sequence[Path]) -> Iterator[tuple[PluginInfo, _Loader]]:
    """Yield every candidate: installed plugins by name and distribution, then files.

    Of two with the same name, the first is used; ours come first, so that none can replace them. Nothing is
    imported."""
    points = [(point, *_distribution(point)) for point in entry_points(group=GROUP)]
    for point, distribution, version in sorted(points, key=_sort_key):
        yield (
            PluginInfo(
                point.name,
                version,
                f"{distribution}, {point.value}",
                distribution="" if point.dist is None else distribution,
            ),
            _Loader(point.load, module=point.module),
        )
    for path in files:
        yield (
            PluginInfo(Path(path).stem, "", str(path)),
            _Loader(partial(plugin_of_file, Path(path)), asked_for=True),
        )


def _sort_key(candidate: tuple[EntryPoint, str, str]) -> tuple[str, bool, str, str]:
    point, distribution, _ = candidate
    return point.name, distribution not in OUR_DISTRIBUTIONS, distribution, point.value


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution that declares the entry point; reads its metadata."""
    return (
        (point.dist.name, point.dist.version)
        if point.dist is not None
        else ("unknown distribution", "")
    )


def plugin_of_file(path: Path) -> ModuleType:
    """Import a plugin's module from a file, under a name that can't shadow another module."""
    name = f"{FILE_MODULE}{path.stem}"
    if not path.is_file():
        raise PluginError(
            str(path), "there is no such file", "give --plugin the path of a Python file"
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(str(path), "is not a Python file", "give --plugin the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up to resolve annotations
    setattr(module, SOURCE, path.read_bytes())
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def registry_of_one(
    info: PluginInfo, load: Callable[[], object], kinds: Mapping[str, Kind] = KINDS
) -> Registry:
    """Return a registry with a single plugin, whatever is installed; raises if it is broken.

    `kinds`: the existing kinds, in addition to its own."""
    registry = Registry(kinds)
    _describe(_open(info, _Loader(load), registry, ()), registry)
    return registry


def add_plugin(registry: Registry, info: PluginInfo, load: Callable[[], object]) -> None:
    """Add another plugin, at the user's request, to a registry.

    Raises:
        PluginError: it is broken.
    """
    loader = _Loader(load, asked_for=True)
    with _may_be_broken(info, loader, registry, strict=True):
        _describe(_open(info, loader, registry, ()), registry)


def _open(
    info: PluginInfo, loader: _Loader, registry: Registry, others: Sequence[_Opened]
) -> _Opened:
    """Import a plugin, check its API version, and add its kinds; raises if it is broken."""
    for other in [*registry.plugins, *(one.info for one in others)]:
        if other.name == info.name:
            raise PluginError(
                info.name,
                f"another plugin has the name {info.name!r}: {other.origin}",
                f"rename the entry point or the file, or uninstall one of the two ({info.origin})",
            )
    plugin = loader.load()
    describe.check_api(info.name, plugin)
    info.beside = dict(getattr(plugin, "CM3_BESIDE", {}))
    info.gone = dict(getattr(plugin, "CM3_GONE", {}))
    info.default_models = dict(getattr(plugin, "CM3_DEFAULT_MODELS", {}))
    for one in others:
        if one.plugin is plugin:
            raise PluginError(
                info.name,
                f"is the same module as the plugin {one.info.name!r}",
                "declare one entry point for it",
            )
    registry.add_kinds(info, describe.ask_kinds(info.name, plugin, registry.kinds))
    return _Opened(info, loader, plugin)


def _describe(opened: _Opened, registry: Registry) -> None:
    """Call one plugin's hooks and add it to the registry; raises if it is broken."""
    info, plugin, kinds = opened.info, opened.plugin, registry.kinds
    pluggy_manager = describe.new_manager(kinds)
    info.deprecated = describe.register(info.name, plugin, pluggy_manager)
    describe.check_hooks(info.name, plugin, pluggy_manager, kinds)
    own = {caller.name for caller in pluggy_manager.get_hookcallers(plugin) or ()}
    configs = {
        name: describe.ask(info.name, plugin, kind, pluggy_manager) if kind.hook in own else {}
        for name, kind in kinds.items()
    }
    commands, benchmarks = (
        describe.ask_functions(info.name, plugin, hook, pluggy_manager)
        for hook in (describe.COMMANDS_HOOK, describe.BENCHMARKS_HOOK)
    )
    models = describe.ask_models(info.name, plugin, pluggy_manager)
    for line in info.deprecated:
        logger.warning("plugin %r (%s): %s; update it", info.name, info.origin, line)
    registry.add(info, configs, commands, models, benchmarks)


def _hooks_in(module: str) -> list[str] | None:
    """Return the hooks named in a module's source, without running it; None: unknown."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin)
        if rest:
            path = path.parent.joinpath(*rest)
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = path.read_text(encoding="utf-8")
    except (ImportError, ValueError, OSError):
        return None
    known = {name for name in vars(hookspecs) if name.startswith("cm3_")}
    if set(_DEFINED.findall(text)) - known:
        return None  # a misspelt hook: the intended one is unknown
    return sorted(set(_HOOK.findall(text)) & known) or None  # they may be in another of its modules


def _set_broken(info: PluginInfo, error: BaseException) -> None:
    info.status, info.reason = "broken", _one_line(error)
    info.traceback = "".join(traceback.format_exception(error))


def _one_line(error: BaseException) -> str:
    """Return the reason in one line: the cause of our own errors, otherwise type and first line."""
    if isinstance(error, CM3Error):
        return error.cause
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _next_step(error: BaseException) -> str:
    return error.next_step if isinstance(error, CM3Error) else "correct the plugin, or uninstall it"
