"""The layers of a recipe: its files in the order in which they apply, then the command line."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.config.interpolation import check_interpolations
from cm3core.errors import RecipeError
from cm3core.files import read_text
from cm3core.plugins.registry import KINDS
from cm3core.recipe import library

COMMAND_LINE = "command line"
OVERRIDE = re.compile(r"(?P<key>[A-Za-z_][\w-]*(\.[\w-]+)*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Layer:
    """One source of values: its `label` in messages and `--origin`, and its YAML `values`."""

    label: str
    values: dict[str, Any]


def file_layers(path: Path) -> list[Layer]:
    """Return the layers of a recipe file: the recipes that it extends, then itself.

    They are ordered left to right; each file appears once, at its first place.

    Raises:
        RecipeError: a file is missing or not a recipe, or recipes extend each other in a circle.
    """
    layers: dict[Path, Layer] = {}
    _collect(path, (), layers)
    return list(layers.values())


def _collect(path: Path, chain: tuple[tuple[Path, str], ...], layers: dict[Path, Layer]) -> None:
    """Add `path`'s layers to `layers`; `chain` has the files (and their labels) that led here."""
    resolved, label = path.resolve(), library.label(path)
    through = [link for link, _ in chain]
    if resolved in through:
        circle = [*(shown for _, shown in chain[through.index(resolved) :]), label]
        raise RecipeError(
            f"{label}: extends",
            f"recipes extend each other in a circle: {' -> '.join(circle)}",
            "remove one link",
        )
    if resolved in layers:
        return
    values = parse(read(path), label)
    for name in _extends(values.pop("extends", []), label):
        _collect(
            library.find(name, relative_to=path.parent, place=f"{label}: extends"),
            (*chain, (resolved, label)),
            layers,
        )
    layers[resolved] = Layer(label, values)


def _extends(value: object, label: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            f"{label}: extends",
            f"is {value!r}, expected a list of recipe names or paths",
            "write extends: [a, b]",
        )
    return names


def read(path: Path) -> str:
    """Return a recipe file's text."""
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"can't be read: {error}", "give a UTF-8 text file") from error


def parse(text: str, label: str) -> dict[str, Any]:
    """Return a layer's values from YAML text, with interpolations unresolved.

    Duplicate keys and non-text keys are refused."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise RecipeError(
                label,
                "is not a recipe: its top level is not a mapping",
                "write sections, as `cm3 recipe show tiny` does",
            )
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise RecipeError(
            f"{label}{line}", f"is not valid YAML: {error.problem}", "correct the line"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(label, f"is not valid YAML: {error}", "correct the file") from error
    except OmegaConfBaseException as error:
        raise _bad_interpolation(label, error) from error
    except RecursionError as error:
        raise RecipeError(
            label, "is not a recipe: it is nested too deeply", "correct the file"
        ) from error
    assert isinstance(loaded, dict)
    _check_keys(loaded, label, ())
    check_interpolations(f"{label}: ", loaded)
    return cast(dict[str, Any], loaded)  # every key is text, as just checked


def _bad_interpolation(label: str, error: OmegaConfBaseException) -> RecipeError:
    key = getattr(error, "full_key", None)
    return RecipeError(
        f"{label}: {key}" if key else label,
        f"has an invalid interpolation: {_first_line(error)}",
        r"write ${section.key}, or \${ for the characters themselves",
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_keys(values: dict[Any, Any], label: str, path: tuple[str, ...]) -> None:
    for key, value in values.items():
        if not isinstance(key, str):
            raise RecipeError(
                f"{label}: {'.'.join((*path, str(key)))}",
                f"the key {key!r} is not text",
                "put it in quotes",
            )
        if isinstance(value, dict):
            _check_keys(value, label, (*path, key))


def override_layer(overrides: Sequence[str]) -> Layer:
    """Return the command line's `key=value` arguments as one layer, whatever their order.

    `kind=name` is short for `kind.name=name`, and is expanded before anything is merged;
    `kind=null` removes the section.

    Raises:
        RecipeError: an argument is not `key=value`, its value is not YAML, or two of them
            contradict each other.
    """
    values: dict[str, Any] = {}
    seen: dict[str, object] = {}
    for argument in overrides:
        match = OVERRIDE.fullmatch(argument)
        if match is None:
            raise RecipeError(
                f"{COMMAND_LINE}: {argument}",
                "is not key=value",
                "write section.key=value, e.g. train.steps=100",
            )
        key = match["key"]
        if key in KINDS and match["value"].strip() not in {"", "null", "~"}:
            key, argument = f"{key}.name", f"{key}.name={match['value']}"
        value = _override_value(argument, key)
        _check_contradiction(key, value, seen)
        seen[key] = value
    for key, value in sorted(seen.items()):
        _put(values, key.split("."), value)
    return Layer(COMMAND_LINE, values)


def _override_value(argument: str, key: str) -> object:
    """Return the value of `a.b.c=value`, read as YAML by OmegaConf."""
    try:
        value: Any = OmegaConf.to_container(OmegaConf.from_dotlist([argument]), resolve=False)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{COMMAND_LINE}: {argument}", "the value is not valid YAML", "put it in quotes"
        ) from error
    except OmegaConfBaseException as error:
        raise _bad_interpolation(COMMAND_LINE, error) from error
    for part in key.split("."):
        value = value[part]
    check_interpolations(f"{COMMAND_LINE}: {key}", value)
    return value


def _check_contradiction(key: str, value: object, seen: dict[str, object]) -> None:
    """Refuse a key given twice, or inside another one's value: the order would then matter."""
    for other, known in seen.items():
        if other == key and known == value:
            continue
        if other == key or other.startswith(f"{key}.") or key.startswith(f"{other}."):
            shown = " and ".join(sorted({f"{other}={known}", f"{key}={value}"}))
            raise RecipeError(
                f"{COMMAND_LINE}: {key}", f"is given twice: {shown}", "keep one of them"
            )


def _put(values: dict[str, Any], path: list[str], value: object) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value
