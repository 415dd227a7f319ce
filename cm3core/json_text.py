"""JSON that users bring: what is wrong with it is named, a key that is twice in an object too."""

from __future__ import annotations

import json
from typing import Any

from cm3core.errors import DataError


class _TwiceError(ValueError):
    """An object has a key twice."""


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
        return json.loads(content, object_pairs_hook=_object)
    except _TwiceError as error:
        raise DataError(place, str(error), "keep one of the two") from None
    except (ValueError, RecursionError) as error:
        raise DataError(place, f"is not JSON: {error}", next_step) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise _TwiceError(f"has the key {twice!a} twice in one object")
    return values
