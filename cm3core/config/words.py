"""Describe in words which values a key may have, and what to write instead of a wrong one."""

from __future__ import annotations

import difflib
import json
import re
import shlex
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import MISSING
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from cm3core.config.schema import WrongTypeError, fit, is_kind_base, nested_dataclass

_UNIONS = (Union, types.UnionType)
_WORDS = {
    bool: ("true or false", "values true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    types.NoneType: ("null", "nulls"),
}
#: Values that get an example if neither the user's value nor the default leads to one.
_EXAMPLES = {bool: True, int: 1, float: 0.5, str: "text"}
#: Texts that YAML reads as themselves, whatever follows a comma or a colon.
_PLAIN = re.compile(r"[A-Za-z_./~-][\w./~-]*")
#: Maximum length of an example.
_LONGEST = 120


def in_words(annotation: Any) -> str:
    """Return what an annotation allows, as the end of "must be ...".

    >>> in_words(int | None), in_words(list[float]), in_words(Literal["adamw", "muon"])
    ('a whole number or null', 'a list of numbers', 'adamw or muon')
    >>> in_words(dict[str, int | None]), in_words(tuple[int, int])
    ('a mapping of names to values, each a whole number or null', '2 whole numbers in a list')
    """
    *others, last = _alternatives(annotation)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return list(dict.fromkeys(one for member in arguments for one in _alternatives(member)))
    if origin is Literal:
        return [shown_value(one) for one in arguments]
    if is_kind_base(annotation):
        return [f"the name of a component ({annotation.kind})", "a mapping with its name and keys"]
    if origin is list or (origin is tuple and arguments[1:] == (Ellipsis,)):
        return [f"a list of {_several(arguments[0])}"]
    if origin is tuple:
        kinds = list(dict.fromkeys(arguments))
        what = _several(kinds[0]) if len(kinds) == 1 else "values"
        return [f"{len(arguments)} {what} in a list"]
    if origin is dict:
        return [f"a mapping of names to {_several(arguments[1])}"]
    if nested_dataclass(annotation) is not None:
        return ["a mapping of keys to values"]
    return [_WORDS[annotation][0] if annotation in _WORDS else "a value"]


def _several(annotation: Any) -> str:
    """The description of several values."""
    if annotation in _WORDS:
        return _WORDS[annotation][1]
    return f"values, each {in_words(annotation)}"


def shown_value(value: Any) -> str:
    """Return a value as YAML on one line, with quotes only where they are needed.

    >>> shown_value([0.9, "cosine"]), shown_value("yes"), shown_value("5"), shown_value({"a": None})
    ('[0.9, cosine]', '"yes"', '"5"', '{a: null}')
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{shown_value(key)}: {shown_value(one)}' for key, one in value.items())}}}"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and _read(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def setting(place: str, value: Any) -> str:
    """Return what a user types for a value: `key=value` for the command line, otherwise a line of the file.

    >>> setting("command line: train.betas", [0.9, 0.8]), setting("mine.yaml: train.steps", 5)
    ("'train.betas=[0.9, 0.8]'", 'steps: 5')
    """
    label, _, key = place.rpartition(": ")
    if label.endswith((".yaml", ".yml", ".json", "standard input")):
        return f"{key.rpartition('.')[2]}: {shown_value(value)}"
    return shlex.quote(f"{key}={shown_value(value)}")


def correction(place: str, value: object, annotation: Any, default: Any = MISSING) -> str:
    """Return the next step for a value of the wrong type: what the user may have meant, or else an example.

    >>> correction("command line: train.steps", "1e3", int | None)
    'write train.steps=1000, or train.steps=null'
    >>> correction("command line: train.betas", "0.9,0.8", list[float])
    "write 'train.betas=[0.9, 0.8]'"

    Args:
        place: of the key, with its layer.
        value: wrong.
        annotation: the key's.
        default: the key's; `MISSING`: none.
    """
    found = [one for one in _meant(value, annotation) if one is not None]
    if not found:
        found = [one for one in (default, *_examples(annotation)) if _fits(one, annotation)]
        found = [one for one in found if one is not None]
    steps = [f"write {setting(place, found[0])}"] if found else []
    if _fits(None, annotation):
        steps.append(f"{'or' if steps else 'write'} {setting(place, None)}")
    step = ", ".join(steps)
    key = place.rpartition(": ")[2]
    return step if step and len(step) <= _LONGEST else f"write {key}=VALUE"


def _meant(value: object, annotation: Any) -> Iterator[Any]:
    """Values that fit, and that the wrong one may stand for."""
    guesses: list[Any] = [value, [value]]
    if isinstance(value, float) and value.is_integer():
        guesses += [int(value)]
    if isinstance(value, str):
        guesses += [_read(value), _read(f"[{value}]"), value.lower()]
        with suppress(ValueError, OverflowError):
            number = float(value)
            guesses += [int(number)] if number.is_integer() else [number]
        known = {str(one): one for one in _literals(annotation)}
        guesses += [known[one] for one in difflib.get_close_matches(value, known, n=1)]
    elif value is not None and not isinstance(value, (list, dict)):
        guesses += [shown_value(value)]
    for guess in guesses:
        if _fits(guess, annotation):
            yield fit(guess, annotation)


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [one for member in get_args(annotation) for one in _literals(member)]


def _examples(annotation: Any) -> Iterator[Any]:
    """Values that fit an annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _EXAMPLES:
        yield _EXAMPLES[annotation]
    elif origin in _UNIONS:
        for member in arguments:
            yield from _examples(member)
    elif origin is Literal:
        yield arguments[0]
    elif origin is list:
        yield from ([one] for one in _examples(arguments[0]))
    elif origin is tuple:
        inner = [next(_examples(one), MISSING) for one in arguments if one is not Ellipsis]
        if MISSING not in inner:
            yield inner
    elif origin is dict:
        yield from ({"name": one} for one in _examples(arguments[1]))


def _fits(value: Any, annotation: Any) -> bool:
    if value is MISSING:
        return False
    try:
        fit(value, annotation)
    except WrongTypeError:
        return False
    return True


def _read(text: str) -> Any:
    """A text as YAML reads it; the text itself if it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return text
