"""The description of plugins, and caching it: `cm3 plugin list` shows it without importing a plugin. Imports only
Python's own library and light modules of ours."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cm3core._version import THIS_PROGRAM
from cm3core.errors import FileError, PluginError
from cm3core.files import cache_folder, read_text, write_text

#: Environment variable that names plugins to leave out.
DISABLE_VARIABLE = "CM3_DISABLE_PLUGINS"
#: Environment variable that makes the first broken plugin an error.
STRICT_VARIABLE = "CM3_STRICT_PLUGINS"
#: Metadata files of an installed distribution, including the plugins it declares.
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt")


@dataclass
class PluginInfo:
    """The description of one plugin.

    Args:
        name: the entry point's name, or the file's without `.py`.
        version: its distribution's, "" for a file.
        origin: distribution and module, or the file.
        distribution: its name for `pip`, "" for a file.
        status: "loaded", "broken" or "disabled".
        components: kind -> names that it provides.
        commands: sub-commands that it provides.
        models: names of the trained models that it ships.
        benchmarks: names of its additions to `cm3 bench kernels`.
        kinds: names of the kinds that it defines.
        deprecated: its deprecated uses, one line each.
        hooks: names of the hooks in its module's source, for a plugin that is not in use; None:
            unknown, it may provide anything.
        reason: one line that says why it is broken or disabled, otherwise "".
        traceback: of the error that broke it, otherwise "".
        beside: "KIND/NAME", "recipe/NAME", "model/NAME", "protocol/NAME" or "weights/NAME" that it had earlier ->
            the distribution that has it: its `CM3_BESIDE`.
        default_models: name of a model that it ships -> its rank among the models that are opened if none is named; the highest
            is: its `CM3_DEFAULT_MODELS`.
        gone: "KIND/NAME" of a component that it no longer has -> what to do instead: its `CM3_GONE`.
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
    hooks: list[str] | None = None
    reason: str = ""
    traceback: str = ""
    distribution: str = ""
    kinds: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    default_models: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """The cached description: the plugins, and `Registry.command_targets`."""

    plugins: list[PluginInfo]
    commands: dict[str, tuple[str, str]]


def kept_plugins() -> Kept | None:
    """Return what `keep_plugins` stored, if describing the plugins would give the same; None: nothing is stored, or
    a file read for it has changed, another package is installed, or other plugins are disabled."""
    try:
        kept = json.loads(read_text(_file()))
        fits = kept["found_by"] == _found_by() and kept["files"] == _states(kept["files"])
        if fits and kept["packages"] == _states(_package_files()):
            commands = {name: (owner, target) for name, (owner, target) in kept["commands"].items()}
            return Kept([PluginInfo(**one) for one in kept["plugins"]], commands)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or not ours
        pass
    return None


def keep_plugins(
    plugins: Sequence[PluginInfo], models: Iterable[Path], commands: Mapping[str, tuple[str, str]]
) -> None:
    """Cache the description of plugins, unless one is broken: the cause can lie anywhere.

    Called right after describing, when the modules that determine the hooks' results are imported.

    Args:
        plugins: all plugins found.
        models: folders of the models that they ship. Others added beside them must be noticed, too.
        commands: name -> the plugin that provides it, and its function.
    """
    if any(info.status == "broken" for info in plugins):
        return
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    beside = {one for folder in models for one in (folder.parent, *folder.parent.iterdir())}
    kept = {
        "found_by": _found_by(),
        "packages": _states(_package_files()),
        "files": _states([*filter(None, modules), *map(str, beside)]),
        "plugins": [asdict(info) for info in plugins],
        "commands": dict(commands),
    }
    with suppress(FileError):  # a read-only cache
        write_text(_file(), json.dumps(kept))


def load_function(place: str, owner: str, target: str) -> Callable[..., Any]:
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


def _file() -> Path:
    return cache_folder("plugins") / "list.json"


def _found_by() -> list[Any]:
    """Everything that affects discovery: this program, Python, the module search path, and the variables that disable
    plugins."""
    variables = [os.environ.get(name, "") for name in (DISABLE_VARIABLE, STRICT_VARIABLE)]
    return [THIS_PROGRAM, sys.version, sys.path, variables]


def _package_files() -> Iterator[str]:
    """The folders of the module search path, and the metadata of the packages installed there."""
    for folder in sys.path:
        yield folder
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if entry.name.endswith((".dist-info", ".egg-info")):
                    yield entry.path
                    yield from (f"{entry.path}/{name}" for name in _METADATA)


def _states(paths: Iterable[str]) -> dict[str, list[int] | None]:
    """Path -> modification time and size; None: it does not exist."""
    states: dict[str, list[int] | None] = {}
    for path in paths:
        try:
            status = os.stat(path or ".")  # noqa: PTH116  # of 1,500 paths: half the time of Path's
            states[path] = [status.st_mtime_ns, status.st_size]
        except OSError:
            states[path] = None
    return states
