"""Resolve the argument of `cm3 plugin check`.

It may be a distribution, an entry point, a module, a source folder or a file. The plugin is not imported
here.
"""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from cm3apps.plugin_check.worker import Verdict
from cm3core.errors import PluginError, close_match
from cm3core.files import user_path
from cm3core.plugins.discovery import GROUP

OURS = "cm3leon"
PROJECT_FILE = "pyproject.toml"


@dataclass
class Target:
    """A plugin to check.

    Args:
        name: the entry point's name, or the file's without `.py`.
        module: "module" or "module:attribute" as in an entry point; "" for a file, or if there is
            nothing to import.
        file: path of the plugin's file, "" for a module.
        paths: folders to search for the module before all others.
        origin: where it was found.
        version: its distribution's, "" if there is none.
        distribution: name of its distribution, "" if there is none.
        verdicts: the verdicts so far.
    """

    name: str
    module: str
    origin: str
    file: str = ""
    paths: tuple[str, ...] = ()
    version: str = ""
    distribution: str = ""
    verdicts: list[Verdict] = field(default_factory=list)


def find_targets(argument: str) -> list[Target]:
    """The plugins named by an argument, at least one.

    Args:
        argument: a `.py` file, a folder with a `pyproject.toml`, the name of an installed
            distribution or of an entry point, or an importable module; tried in this order.

    Raises:
        PluginError: nothing has that name, or the folder's `pyproject.toml` can't be read.
    """
    path = user_path(argument)
    if argument.endswith(".py"):
        if not path.is_file():
            raise PluginError(argument, "there is no such file", "correct the path")
        return [Target(path.stem, "", str(path), file=str(path.absolute()))]
    if (path / PROJECT_FILE).is_file():
        return _of_folder(path)
    points = list(metadata.entry_points(group=GROUP))
    found = [point for point in points if point.name == argument or _same(argument, point.dist)]
    if found:
        return [_of_entry_point(point) for point in sorted(found, key=lambda point: point.name)]
    if path.is_dir() and ("/" in argument or not _importable(argument)):
        raise PluginError(
            argument,
            f"the folder has no {PROJECT_FILE}",
            f"give the folder that has one, or a .py file{_above(path)}",
        )
    if "/" in argument and path.exists():
        raise PluginError(
            argument, "is not a Python file", f"give a .py file, or a folder with {PROJECT_FILE}"
        )
    if "/" in argument:
        raise PluginError(argument, "there is no such file or folder", "correct the path")
    if _importable(argument):
        return [_of_module(argument, points)]
    try:
        distribution = metadata.distribution(argument)
    except (metadata.PackageNotFoundError, ValueError):
        known = {point.name for point in points} | {
            point.dist.name for point in points if point.dist is not None
        }
        raise PluginError(
            argument,
            "no distribution, entry point, module, folder or file has this name",
            f"{close_match(argument, known)}; give a folder or file by its path",
        ) from None
    return [
        Target(
            argument,
            "",
            distribution.name,
            version=distribution.version,
            distribution=distribution.name,
            verdicts=[_no_entry_point(distribution.name, argument)],
        )
    ]


def _above(path: Path) -> str:
    above = next(
        (folder for folder in path.absolute().parents if (folder / PROJECT_FILE).is_file()), None
    )
    return "" if above is None else f" (did you mean {above}?)"


def _importable(name: str) -> bool:
    """Whether a module with that name exists; its parent packages are not imported."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*", name):
        return False
    try:
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _same(name: str, distribution: metadata.Distribution | None) -> bool:
    return distribution is not None and _normal(distribution.name) == _normal(name)


def _of_entry_point(point: metadata.EntryPoint) -> Target:
    if point.dist is None:
        return Target(point.name, point.value, point.value)
    name, version = point.dist.name, point.dist.version
    verdicts = [
        Verdict("install", "", "ok", f"{name} {version} declares {point.name} = {point.value}")
    ]
    if not _same(OURS, point.dist):
        verdicts += _dependency(name, point.dist.requires or [])
    return Target(
        point.name,
        point.value,
        f"{name}, {point.value}",
        version=version,
        distribution=name,
        verdicts=verdicts,
    )


def _of_module(name: str, points: Sequence[metadata.EntryPoint]) -> Target:
    declared = [point for point in points if point.value.partition(":")[0] == name]
    if declared:
        return _of_entry_point(declared[0])
    short = name.rpartition(".")[2]
    return Target(
        short,
        name,
        name,
        verdicts=[_no_entry_point("the module's distribution", short, name, status="warn")],
    )


def _no_entry_point(
    owner: str, name: str, module: str = "my_package", *, status: str = "fail"
) -> Verdict:
    line = f'{re.sub(r"[^a-z0-9_-]", "_", name.lower())} = "{module}"'
    return Verdict(
        "install",
        "",
        status,
        f"{owner} declares no entry point in the group {GROUP!r}, so cm3 does not find the plugin",
        f'write `{line}` below [project.entry-points."{GROUP}"] in {PROJECT_FILE}, and reinstall it',
    )


def _dependency(name: str, requirements: Sequence[str]) -> Iterator[Verdict]:
    """Whether a distribution declares that it depends on cm3leon."""
    if not any(
        _normal(match[0]) == OURS
        for item in requirements
        if (match := re.match(r"[\w.-]+", item.strip()))
    ):
        yield Verdict(
            "install",
            "",
            "warn",
            f"{name} does not depend on {OURS}",
            f'add "{OURS}" to dependencies in {PROJECT_FILE}',
        )


def _of_folder(folder: Path) -> list[Target]:
    """The plugins declared by a source folder's `pyproject.toml`, in their versions in the folder."""
    path = folder / PROJECT_FILE
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PluginError(str(path), f"is not valid TOML: {error}", "correct the file") from error
    project: Any = data.get("project", {})
    points = project.get("entry-points", {}).get(GROUP, {}) if isinstance(project, dict) else {}
    if (
        not isinstance(project, dict)
        or not isinstance(points, dict)
        or not all(isinstance(value, str) for value in points.values())
    ):
        raise PluginError(
            str(path),
            f"[project] or its entry points in {GROUP!r} are not a table of strings",
            f'write `mine = "my_package"` below [project.entry-points."{GROUP}"]',
        )
    name = str(project.get("name", folder.absolute().name))
    version = str(project.get("version", ""))
    if not points:
        return [
            Target(
                name,
                "",
                str(folder),
                version=version,
                distribution=name,
                verdicts=[_no_entry_point(name, name)],
            )
        ]
    installed = _installed(name)
    targets = []
    for point, value in sorted(points.items()):
        module = value.partition(":")[0].strip()
        target = Target(point, value, f"{folder}, {value}", version=version, distribution=name)
        root = _root_of(folder, module.partition(".")[0], data)
        if root is None:
            target.module = ""
            target.verdicts.append(
                Verdict(
                    "install",
                    "",
                    "fail",
                    f"{PROJECT_FILE} declares {point} = {value}, but the folder has no module "
                    f"{module}",
                    "correct the entry point's value, or add the module",
                )
            )
        else:
            target.paths = (str(root.absolute()),)
            target.verdicts.append(_installation(folder, name, point, value, root, installed))
        if name != OURS and "dependencies" not in project.get("dynamic", []):
            target.verdicts += _dependency(
                name, [str(item) for item in project.get("dependencies", [])]
            )
        targets.append(target)
    return targets


def _installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def _installation(
    folder: Path,
    name: str,
    point: str,
    value: str,
    root: Path,
    installed: metadata.Distribution | None,
) -> Verdict:
    """Whether the installed plugin is the one in the folder."""
    checked = f"the code in {root} is checked"
    if installed is None:
        return Verdict(
            "install", "", "warn", f"{name} is not installed: {checked}", f"pip install -e {folder}"
        )
    if not any(
        (other.group, other.name, other.value) == (GROUP, point, value)
        for other in installed.entry_points
    ):
        return Verdict(
            "install",
            "",
            "warn",
            f"the installed {name} {installed.version} does not declare {point} = {value}: "
            f"{checked}",
            f"pip install -e {folder}",
        )
    return Verdict("install", "", "ok", f"{name} {installed.version} is installed; {checked}")


def _root_of(folder: Path, package: str, data: dict[str, Any]) -> Path | None:
    """The project's folder that contains a top-level module, by the usual layouts, or None."""
    places = [folder / "src", folder]
    tools = data.get("tool", {})
    places += [
        (folder / str(item)).parent
        for item in _get(tools, "hatch", "build", "targets", "wheel", "packages")
    ]
    places += [
        folder / str(item) for item in _get(tools, "setuptools", "packages", "find", "where")
    ]
    places += sorted(
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    return next(
        (
            place
            for place in places
            if (place / package).is_dir() or (place / f"{package}.py").is_file()
        ),
        None,
    )


def _get(tree: Any, *keys: str) -> list[Any]:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, list) else []
