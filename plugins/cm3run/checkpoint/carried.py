"""Plugin files in a checkpoint: the source of one-file plugins that its recipe needs.

    OUT/checkpoints/step-00001000/plugins/mine.py

They are never imported without permission. To run one, the user reads it and names its SHA-256; the hashed bytes are
exactly those that run.
"""

from __future__ import annotations

import copy
import hashlib
import re
import stat
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cm3core.errors import CheckpointError
from cm3core.plugins.discovery import FILE_MODULE, SOURCE, add_plugin
from cm3core.plugins.registry import PluginInfo, Registry
from cm3core.recipe.recipe import kinds_of, providers_of
from cm3run.trust import is_download

if TYPE_CHECKING:
    from cm3core.recipe import Recipe

#: Folder of a checkpoint's plugin files.
CARRIED = "plugins"
#: Limits on the bytes of a file and the number of files, for writing and reading.
MOST_BYTES, MOST_FILES = 256 * 1024, 8
#: Smallest number of hexadecimal digits that identify a file: 64 bits.
FEWEST_DIGITS = 16
_NAME = re.compile(r"[A-Za-z_]\w{0,99}\.py", re.ASCII)


def is_carried_name(name: str) -> bool:
    """Whether a file of a checkpoint's folder of plugins may have that name."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class CarriedPlugin:
    """A plugin file in a checkpoint, read but not run."""

    path: Path
    source: bytes

    @property
    def name(self) -> str:
        """The plugin's name."""
        return self.path.stem

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes that would run."""
        return hashlib.sha256(self.source).hexdigest()


def write_carried(folder: Path, recipe: Recipe, registry: Registry) -> None:
    """Copy the sources of the one-file plugins that a recipe needs into a checkpoint's folder.

    Files over `MOST_BYTES` are left out: a plugin of that size should be an installable package.
    """
    providers = providers_of(recipe, registry).items()
    # trackers are only needed for training, not for using the model
    owners = {who.plugin for key, who in providers if not key.startswith("train.")}
    owners |= {
        info.name for info in registry.plugins if not set(info.kinds).isdisjoint(kinds_of(recipe))
    }
    sources = {
        f"{info.name}.py": source
        for info in registry.plugins
        if info.name in owners
        and (source := _source_of(info)) is not None
        and len(source) <= MOST_BYTES
        and _NAME.fullmatch(f"{info.name}.py")
    }
    for name, source in list(sources.items())[:MOST_FILES]:
        (folder / CARRIED).mkdir(exist_ok=True)
        (folder / CARRIED / name).write_bytes(source)


def copy_carried(source: Path, target: Path) -> None:
    """Copy the plugin files of a checkpoint to another."""
    for plugin in read_carried(source):
        (target / CARRIED).mkdir(exist_ok=True)
        (target / CARRIED / plugin.path.name).write_bytes(plugin.source)


def read_carried(folder: Path) -> list[CarriedPlugin]:
    """The plugin files of a checkpoint, without running them.

    Raises:
        CheckpointError: an entry is not a small file with a plain name.
    """
    if not (folder / CARRIED).is_dir():
        return []
    found = sorted((folder / CARRIED).iterdir())
    for path in found[: MOST_FILES + 1]:
        # the Hub's cache has links to files beside the model
        status = path.stat() if is_download(path, folder) else path.lstat()
        plain = stat.S_ISREG(status.st_mode) and is_carried_name(path.name)
        if not plain or status.st_size > MOST_BYTES or len(found) > MOST_FILES:
            raise CheckpointError(
                str(path),
                f"is not one of at most {MOST_FILES} plugin files (NAME.py, at most "
                f"{MOST_BYTES // 1024} KiB)",
                f"remove anything else from {folder / CARRIED}",
            )
    return [CarriedPlugin(path, path.read_bytes()) for path in found]


def with_trusted(registry: Registry, folder: Path, trusted: Iterable[str]) -> Registry:
    """A copy of the registry with the checkpoint's plugin files whose SHA-256 is trusted.

    Args:
        registry: its plugins are not loaded again.
        folder: the checkpoint's.
        trusted: hexadecimal SHA-256 of files, at least the first `FEWEST_DIGITS` digits of each.

    Raises:
        CheckpointError: no file has such a hash.
        PluginError: a trusted file is not a plugin, or is broken.
    """
    carried, wanted = read_carried(folder), [digits.strip().lower() for digits in trusted]
    for digits in wanted:
        long_enough = re.fullmatch(rf"[0-9a-f]{{{FEWEST_DIGITS},64}}", digits)
        if not long_enough or not any(one.sha256.startswith(digits) for one in carried):
            shown = "; ".join(f"{one.path} has {one.sha256}" for one in carried)
            raise CheckpointError(
                f"trusted plugin {digits!r}",
                f"is not the SHA-256 of a plugin file in {folder}"
                if long_enough
                else f"is not a SHA-256 of {FEWEST_DIGITS} to 64 hexadecimal digits",
                f"read the file before you trust it: {shown}" if shown else "leave it out",
            )
    own = copy.deepcopy(registry)
    for plugin in carried:
        if any(plugin.sha256.startswith(digits) for digits in wanted) and plugin.name not in {
            info.name for info in own.plugins
        }:
            _add(own, plugin)
    return own


def refusal(
    registry: Registry, folder: Path, wanted: Iterable[str] | None = None
) -> CheckpointError | None:
    """The error for components that need a checkpoint's own plugin files.

    Args:
        registry: the loaded plugins.
        folder: the checkpoint's.
        wanted: names of the plugins that are needed; None: unknown.

    Returns:
        The error; None if the checkpoint contains none of them.
    """
    loaded = {info.name for info in registry.plugins}
    missing = [
        plugin
        for plugin in read_carried(folder)
        if plugin.name not in loaded and (wanted is None or plugin.name in wanted)
    ]
    if not missing:
        return None
    listed = "; ".join(f"{one.path} (SHA-256 {one.sha256})" for one in missing)
    options = " ".join(f"--trust-plugin {one.sha256}" for one in missing)
    names = ", ".join(repr(one.sha256) for one in missing)
    return CheckpointError(
        str(folder),
        f"needs a plugin that is not loaded; its code is in the checkpoint: {listed}. Code in a checkpoint "
        "does not run without your permission, because it could do anything that you can",
        f"read it (less {missing[0].path}); if you trust it, add {options} (in Python "
        f"trust_plugins=[{names}]), or give your own copy with --plugin FILE.py",
    )


def hint(registry: Registry, folder: Path) -> str:
    """How to trust a checkpoint's plugin files that are not loaded; "" if there are none."""
    loaded = {info.name for info in registry.plugins}
    return "; ".join(
        f"--trust-plugin {one.sha256} runs {one.path}; read that file first"
        for one in read_carried(folder)
        if one.name not in loaded
    )


def _source_of(info: PluginInfo) -> bytes | None:
    """The bytes that were run for a one-file plugin; None for an installed one."""
    module = sys.modules.get(f"{FILE_MODULE}{info.name}")
    source = getattr(module, SOURCE, None)
    return source if isinstance(source, bytes) and not info.version else None


def _add(registry: Registry, plugin: CarriedPlugin) -> None:
    """Run a trusted file's bytes, and register what it provides."""

    def load() -> object:
        name = f"{FILE_MODULE}{plugin.name}"
        module = types.ModuleType(name)
        module.__file__ = str(plugin.path)
        setattr(module, SOURCE, plugin.source)
        sys.modules[name] = module  # dataclasses look their module up to resolve annotations
        try:
            exec(compile(plugin.source, str(plugin.path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    add_plugin(registry, PluginInfo(plugin.name, "", str(plugin.path)), load)
