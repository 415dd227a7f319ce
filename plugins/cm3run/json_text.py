"""JSON that users bring: what is wrong with it is named, a key that is twice in an object too."""

from __future__ import annotations

import json
from typing import Any

from cm3core.errors import DataError


class KeyTwiceError(ValueError):
    """An object has a key twice.

    Args:
        key: that key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"has the key {key!a} twice in one object")
        self.key = key


def parse_json(content: str, place: str, next_step: str = "correct it") -> Any:
    """The value of a JSON text.

    Python's own reader, like most, silently takes the last of two values with one key.

    Args:
        content: the text.
        place: its name in errors.
        next_step: what to do about a text that is no JSON.

    Raises:
        DataError: it is no JSON, or an object in it has a key twice.
    """
    try:
        return json.loads(content, object_pairs_hook=object_of)
    except KeyTwiceError as error:
        raise DataError(place, str(error), "keep one of the two") from None
    except (ValueError, RecursionError) as error:
        raise DataError(place, f"is not JSON: {error}", next_step) from error


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` of `json`: the object; raises `KeyTwiceError`."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise KeyTwiceError(name)
            seen.add(name)
    return values
