"""YAML text -> values, whatever the text holds: every way in which it can be wrong is reported.

OmegaConf reads it, with interpolations unresolved. The text may come from anyone.
"""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cm3core.errors import RecipeError

#: What the constructors of YAML's scalars raise when a text lacks the form of its tag
#: (`!!int x`), or a number has more digits than Python converts.
_SCALAR_ERRORS = (ValueError, KeyError, AttributeError)
_INTEGER = "tag:yaml.org,2002:int"
#: Bits of an integer: what a float can hold. Python writes larger ones only up to a limit.
_MAX_BITS = 1023


def mapping_of(text: str, label: str) -> dict[Any, Any]:
    """Return the mapping that a YAML text holds; `label` names the text in errors.

    Raises:
        RecipeError: it is not YAML, no mapping, or has a value that no recipe can hold.
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
        RecipeError: the value is not YAML, or one that no recipe can hold; `place` names it.
    """
    text = argument.partition("=")[2]
    try:
        text.encode()  # the error depends on the versions of OmegaConf and PyYAML otherwise
        with suppress(yaml.reader.ReaderError):  # characters that are no text are named later
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
    node: yaml.Node | None, place: str, *, has_lines: bool = False, seen: set[int] | None = None
) -> None:
    """Raise `RecipeError` for an integer that YAML 1.1 reads otherwise than people do: a leading zero
    makes it octal (010 is 8), colons sexagesimal (16:9 is 969).

    `seen` has the nodes that were looked at: an alias may lead back to one.
    """
    seen = set() if seen is None else seen
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    for one in inner:
        _check_bases(one, place, has_lines=has_lines, seen=seen)
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
    """Return the error of an interpolation that OmegaConf can't read."""
    key = getattr(error, "full_key", None)
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return RecipeError(
        f"{label}: {key}" if key else label,
        f"has an invalid interpolation: {first}",
        r"write ${section.key}, or \${ for the characters themselves",
    )


def check_numbers(value: object, place: str) -> None:
    """Raise `RecipeError` for an integer that no float could hold, which can't be printed either.

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
    """Return why a scalar can't be read, in one line."""
    if isinstance(error, UnicodeError):
        return "it is not valid UTF-8"
    if "integer string conversion" in str(error):
        return "it is a number of more than 300 digits"
    return str(error) if isinstance(error, ValueError) else "it lacks the form of its YAML tag"
