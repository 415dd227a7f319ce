"""The layers of a recipe: its files in the order in which they apply, then the command line; and the YAML in them.

OmegaConf reads the YAML without resolving interpolations. The text is untrusted: every possible error is
reported.
"""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.config.schema import check_interpolations
from cm3core.errors import RecipeError
from cm3core.files import read_text
from cm3core.plugins.registry import ANYONE, KINDS, Writer, read_writer
from cm3core.recipe import library
from cm3core.recipe.forms import (
    KEY_VALUE,
    MANDATORY,
    Items,
    KeyPath,
    next_step,
    path_of,
    plain,
    whole,
)

#: Errors of YAML's scalar constructors for a text that does not match its tag
#: (`!!int x`), or a number with more digits than Python converts.
_SCALAR_ERRORS = (ValueError, KeyError, AttributeError)
_INTEGER = "tag:yaml.org,2002:int"
#: Maximum bits of an integer, so that a float can hold it. Python prints larger ones only up to a limit.
_MAX_BITS = 1023


def mapping_of(text: str, label: str) -> dict[Any, Any]:
    """Return the mapping in a YAML text; `label` names the text in errors.

    Raises:
        RecipeError: it is not YAML, not a mapping, or has a value that no recipe can hold.
    """
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        _check_bases(node, label, has_lines=True)
        loaded = (
            OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
            if node is None or isinstance(node, yaml.MappingNode)
            else None
        )
    except RecipeError:  # a ValueError too
        raise
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise RecipeError(
            f"{label}{line}", f"is not valid YAML: {error.problem}", "correct the line"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(label, f"is not valid YAML: {error}", "correct the file") from error
    except OmegaConfBaseException as error:
        raise bad_interpolation(label, error) from error
    except RecursionError as error:
        raise RecipeError(
            label, "is not a recipe: it is nested too deeply", "correct the file"
        ) from error
    except _SCALAR_ERRORS as error:
        raise RecipeError(
            label, f"has a value that can't be read: {_reason(error)}", "correct the value"
        ) from error
    if loaded is None:
        raise RecipeError(
            label,
            "is not a recipe: its top level is not a mapping",
            "write sections, as `cm3 recipe show tiny` does",
        )
    assert isinstance(loaded, dict)
    check_numbers(loaded, f"{label}: ")
    return loaded


def value_of(argument: str, place: str) -> Any:
    """Return the value of `a.b.c=value` inside its mappings: `{"a": {"b": {"c": value}}}`.

    Raises:
        RecipeError: the value is not YAML, or no recipe can hold it; `place` names it.
    """
    text = argument.partition("=")[2]
    try:
        text.encode()  # otherwise the error would depend on the versions of OmegaConf and PyYAML
        with suppress(yaml.reader.ReaderError):  # invalid characters are reported later
            _check_bases(yaml.compose(text, yaml.SafeLoader), place)
        values = OmegaConf.to_container(OmegaConf.from_dotlist([argument]), resolve=False)
    except RecipeError:  # a ValueError too
        raise
    except yaml.YAMLError as error:
        raise RecipeError(place, "the value is not valid YAML", "put it in quotes") from error
    except OmegaConfBaseException as error:
        raise bad_interpolation(place.partition(":")[0], error) from error
    except RecursionError as error:
        raise RecipeError(place, "the value is nested too deeply", "correct the value") from error
    except _SCALAR_ERRORS as error:
        raise RecipeError(
            place, f"the value can't be read: {_reason(error)}", "correct the value"
        ) from error
    return values


def _check_bases(
    node: yaml.Node | None,
    place: str,
    *,
    has_lines: bool = False,
    seen: dict[int, bool] | None = None,
) -> None:
    """Raise `RecipeError` for an integer that YAML 1.1 reads differently than people do: a leading zero
    makes it octal (010 is 8), colons sexagesimal (16:9 is 969); and for a value that contains itself.

    `seen`: the nodes visited, and whether their check is complete; an alias may refer back to an open one.
    """
    seen = {} if seen is None else seen
    if node is None or seen.get(id(node)):
        return
    if id(node) in seen:
        raise RecipeError(
            f"{place}, line {node.start_mark.line + 1}" if has_lines else place,
            "is not valid YAML: recursive aliases are not supported",
            "correct the file",
        )
    seen[id(node)] = False
    if isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    for one in inner:
        _check_bases(one, place, has_lines=has_lines, seen=seen)
    seen[id(node)] = True
    if not isinstance(node, yaml.ScalarNode) or node.tag != _INTEGER:
        return
    text: str = node.value
    digits = text.replace("_", "").lstrip("+-")
    octal = digits[:1] == "0" and digits.isdecimal() and int(digits, 8) != int(digits)
    if not octal and ":" not in digits:
        return
    value = yaml.SafeLoader("").construct_yaml_int(node)
    sign = "-" if text[0] == "-" else ""
    raise RecipeError(
        f"{place}, line {node.start_mark.line + 1}" if has_lines else place,
        f"has {text}, which YAML reads as the {'octal' if octal else 'base-60'} number {value}",
        f"write {f'{sign}{int(digits)} or ' if octal else ''}{value}, "
        f"or '{text}' in quotes for a text",
    )


def bad_interpolation(label: str, error: OmegaConfBaseException) -> RecipeError:
    """Return the error for an interpolation that OmegaConf can't read."""
    key = getattr(error, "full_key", None)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return RecipeError(
        f"{label}: {key}" if key else label,
        f"has an invalid interpolation: {first}",
        r"write ${section.key}, or \${ for the characters themselves",
    )


def check_numbers(value: object, place: str) -> None:
    """Raise `RecipeError` for an integer that no float can hold, which can't be printed either.

    `place` is where the value is; a mapping's keys are appended to it."""
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise RecipeError(
            place.rstrip(": ."), "is a number of more than 300 digits", "write a smaller one"
        )
    if isinstance(value, dict):
        for key, item in value.items():
            check_numbers(key, place)
            check_numbers(item, f"{place}{key}.")
    elif isinstance(value, list):
        for item in value:
            check_numbers(item, place)


def _reason(error: Exception) -> str:
    """Return in one line why a scalar can't be read."""
    if isinstance(error, UnicodeError):
        return "it is not valid UTF-8"
    if "integer string conversion" in str(error):
        return "it is a number of more than 300 digits"
    return str(error) if isinstance(error, ValueError) else "it does not match its YAML tag"


COMMAND_LINE = "command line"
#: Length to which errors shorten an argument.
_MOST_SHOWN = 100
#: A file's block that says how its recipe is swept (`cm3 sweep`). It is no section: no run stores it, and no recipe
#: inherits it.
SWEEP = "sweep"
#: The file in which a run or a checkpoint stores its recipe.
STORED = "recipe.yaml"
#: Top-level keys of a file that begin with this hold values for YAML's anchors, and are not part of the recipe.
NOTES = "x-"


@dataclass(frozen=True)
class Layer:
    """One source of values.

    Args:
        label: its name in messages and `--origin`.
        values: its YAML values.
        writer: resolves bare names of components in it.
    """

    label: str
    values: dict[str, Any]
    writer: Writer = ANYONE


def file_layers(path: Path, moved: Callable[[str], str] = lambda name: "") -> list[Layer]:
    """Return the layers of a recipe file: the recipes that it extends, then the file itself.

    They are ordered left to right; each file appears once, at its first place.

    Args:
        path: the file.
        moved: name of a recipe -> the distribution that has it, "" if unknown; for the error.

    Raises:
        RecipeError: a file is missing or not a recipe, or recipes extend each other in a circle.
    """
    layers: dict[Path, Layer] = {}
    _collect(path, (), layers, moved)
    return list(layers.values())


def _collect(
    path: Path,
    chain: tuple[tuple[Path, str], ...],
    layers: dict[Path, Layer],
    moved: Callable[[str], str],
) -> None:
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
            library.find(
                name,
                relative_to=path.parent,
                place=f"{label}: extends",
                distribution=moved(name),
            ),
            (*chain, (resolved, label)),
            layers,
            moved,
        )
    layers[resolved] = Layer(label, values, _writer(path))


def _writer(path: Path) -> Writer:
    """Return the writer of a recipe file, which resolves its bare names: of a shipped one, or one stored by a run."""
    if distribution := library.distribution_of(path):
        return Writer(distribution=distribution)
    if path.name != STORED:
        return ANYONE
    return read_writer(
        path.parent,
        lambda file, cause: RecipeError(
            str(file), cause, "delete it; recipes beside it then name plugin/component where needed"
        ),
    )


def _extends(value: object, label: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RecipeError(
            f"{label}: extends",
            f"is {value!r}, expected a list of recipe names or paths",
            "write extends: [a, b]",
        )
    return names


#: What was read from a standard input, because it can be read only once.
_READ: WeakKeyDictionary[object, str] = WeakKeyDictionary()


def _standard_input() -> str:
    """The text of the standard input."""
    if sys.stdin is None:
        raise OSError("it is closed")
    if sys.stdin not in _READ:
        _READ[sys.stdin] = sys.stdin.read()
    return _READ[sys.stdin]


def read(path: Path) -> str:
    """Return a recipe file's text."""
    try:
        return _standard_input() if path == library.STANDARD_INPUT else read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            library.label(path), f"can't be read: {error}", "give a UTF-8 text file"
        ) from error


def parse(text: str, label: str) -> dict[str, Any]:
    """Return a layer's values from YAML text, with interpolations unresolved.

    Duplicate keys and non-text keys are refused. Top-level keys that begin with `NOTES` are left out."""
    loaded = mapping_of(text, label)
    loaded = {key: value for key, value in loaded.items() if not _is_note(key)}
    _check_keys(loaded, label, ())
    check_interpolations(f"{label}: ", loaded)
    return cast(dict[str, Any], loaded)  # every key is text, as just checked


def _is_note(key: object) -> bool:
    return isinstance(key, str) and key.startswith(NOTES)


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


def override_layer(overrides: Sequence[str], kinds: Container[str] = KINDS) -> Layer:
    """Return the command line's overrides as one layer, regardless of their order.

    `cm3core.recipe.forms` lists their forms. `kind=name` is short for `kind.name=name`, and is expanded before anything
    is merged; `kind=null` removes the section. `key=name` for a component inside another one is expanded likewise
    if keys below `key` are given too.

    Raises:
        RecipeError: an argument has none of the forms, its value is not YAML, or two of them
            contradict each other.
    """
    values: dict[str, Any] = {}
    given: dict[str, object] = {}
    arguments = [plain(argument, kinds) for argument in overrides]
    paths = {path_of(argument.partition("=")[0]) for argument in arguments}
    for number, argument in enumerate(arguments):
        match = KEY_VALUE.fullmatch(argument)
        if match is None:
            raise RecipeError(
                f"{COMMAND_LINE}: {_shortened(overrides[number])}",
                "is not key=value",
                next_step(overrides[number], overrides[number + 1 :]),
            )
        key, text = match["key"], match["value"].strip()
        if key.partition(".")[0] == "extends":
            raise RecipeError(
                f"{COMMAND_LINE}: extends",
                "works only in recipe files; the command line changes values of a recipe",
                f"write a file that begins with `extends: {match['value'] or '[RECIPE]'}`, and name it",
            )
        if key in kinds and text not in {"", "null", "~", MANDATORY} and text[0] != "{":
            key = f"{key}.name"
        value = _override_value(f"{key}={match['value']}", key, arguments[number + 1 :])
        path = path_of(key)
        if path[0] in kinds and len(path) > 1 and isinstance(value, str) and value != MANDATORY:
            above = any(one != path and one[: len(path)] == path for one in paths)
            key = f"{key}.name" if above else key
        _check_contradiction(key, value, given)
        given[key] = value
    for key, value in sorted(given.items()):
        _put(values, path_of(key), value)
    return Layer(COMMAND_LINE, values)


def _override_value(argument: str, key: str, following: Sequence[str]) -> object:
    """Return the value of `a.b.c=value`, read as YAML by OmegaConf; `following`: the arguments after it."""
    place = f"{COMMAND_LINE}: {_shortened(argument)}"
    # OmegaConf would read the number of an item as a key
    named = f"{key.partition('[')[0]}={argument.partition('=')[2]}"
    try:
        value = value_of(named, place)
    except RecipeError as error:
        if complete := whole([argument, *following], _is_readable):
            step = f"put the argument in quotes: {shlex.quote(complete)}"
            raise RecipeError(place, f"{error.cause}: the shell split it", step) from error
        raise
    for part in named.partition("=")[0].split("."):
        value = value[part]
    check_numbers(value, f"{COMMAND_LINE}: {key}")
    check_interpolations(f"{COMMAND_LINE}: {key}", value)
    if isinstance(value, dict):
        _check_keys(value, COMMAND_LINE, (key,))
    return value


def _is_readable(argument: str) -> bool:
    try:
        value_of(argument, "")
    except RecipeError:
        return False
    return True


def _shortened(argument: str) -> str:
    """An argument as errors show it."""
    shown = argument if len(argument) <= _MOST_SHOWN else f"{argument[:_MOST_SHOWN]}..."
    return shown.encode(errors="backslashreplace").decode()  # bytes that are not UTF-8


def _check_contradiction(key: str, value: object, given: dict[str, object]) -> None:
    """Refuse a key given twice, or inside another key's value, because the order would then matter."""
    for path, inner in _leaves(path_of(key), value):
        for other, known in given.items():
            for other_path, other_inner in _leaves(path_of(other), known):
                length = min(len(path), len(other_path))
                if path == other_path and inner == other_inner:
                    continue
                if path[:length] == other_path[:length]:
                    shown = " and ".join(sorted({f"{other}={known}", f"{key}={value}"}))
                    raise RecipeError(
                        f"{COMMAND_LINE}: {key}", f"is given twice: {shown}", "keep one of them"
                    )


def _leaves(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, object]]:
    """(path, value) of a value, or of everything in it if it is a mapping."""
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves((*path, key), inner)


def _put(values: dict[Any, Any], path: Sequence[str | int], value: object) -> None:
    """Set the value at a path; a mapping is merged with what is there."""
    first, *rest = path
    if rest:
        values = values.setdefault(first, Items() if isinstance(rest[0], int) else {})
        _put(values, rest, value)
    elif isinstance(value, dict) and isinstance(values.get(first), dict):
        for key, inner in value.items():
            _put(values[first], (key,), inner)
    else:
        values[first] = value
