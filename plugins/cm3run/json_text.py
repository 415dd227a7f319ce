"""JSON from a file, a row or a person: read once, at the border, and within bounds.

Refused are text that is no UTF-8, values nested without end, and a key that is twice in an object. Our own documents
(manifests, records of shards and banks, rows, metadata) have a form, an annotation that is usually a `TypedDict`
(`cm3core.arguments.misfit`): then values of other types, half characters and numbers that are none are refused, too, and
nothing behind this module meets them. Data sets of others have none: their readers check what they use, record by record.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Any, Final, TypeAlias

from cm3core.arguments import Matching, Without, misfit
from cm3core.errors import DataError

#: Most levels of lists and objects inside each other; forms have up to six.
MOST_LEVELS: Final = 64
#: Most bytes of one document: a caption with all its alternatives, a manifest of a hundred thousand files.
MOST_BYTES: Final = 1 << 26
_TOO_DEEP = f"is nested deeper than {MOST_LEVELS} levels"
#: An escape that may be half a character, and half a character.
_HALF_ESCAPE, _HALF = re.compile(r"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")
#: A text that can be an id, a name or a key: files and databases can't hold the character 0.
StoredName: TypeAlias = Annotated[str, Without("\0", "a text without the character 0")]

#: A SHA-256 in hexadecimal digits.
Sha256: TypeAlias = Annotated[str, Matching("[0-9a-f]{64}", "a SHA-256")]


class KeyTwiceError(ValueError):
    """An object has a key twice.

    Args:
        key: that key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"has the key {key!a} twice in one object")
        self.key = key


class _OutOfBoundsError(ValueError):
    """JSON that a reader refuses."""


def parse_json(
    content: str | bytes,
    place: str,
    next_step: str = "correct it",
    *,
    form: Any = None,
    most_bytes: int = MOST_BYTES,
) -> Any:
    """The value of a JSON text.

    Python's own reader, like most, silently takes the last of two values with one key, and several encodings.

    Args:
        content: the text, or its bytes in UTF-8.
        place: its name in errors.
        next_step: what to do about a text that is no JSON, or has another form.
        form: annotation that the value has to fit; None: it may be anything, also with half characters and with
            numbers that are none.
        most_bytes: of a text that has a form.

    Raises:
        DataError: it is no JSON, has another form, is too large or nested too deeply, or an object in it has a key twice.
    """
    if form is not None and len(content) > most_bytes:
        raise DataError(place, f"has more than {most_bytes:,} bytes", next_step)
    try:
        text = content if isinstance(content, str) else str(content, "utf-8")
        value = (_LENIENT if form is None else _STRICT).decode(text)
        _check_bounds(text, value, halves=form is not None)
    except KeyTwiceError as error:
        raise DataError(place, str(error), "keep one of the two") from None
    except UnicodeDecodeError as error:
        raise DataError(place, f"is not UTF-8 (byte {error.start})", next_step) from error
    except _OutOfBoundsError as error:
        raise DataError(place, str(error), next_step) from None
    except RecursionError:
        raise DataError(place, _TOO_DEEP, next_step) from None
    except ValueError as error:
        digits = "Exceeds the limit" in str(error)  # of Python for whole numbers
        cause = "holds a number of too many digits" if digits else f"is not JSON: {error}"
        raise DataError(place, cause, next_step) from error
    if form is not None:
        check_form(value, form, place, next_step)
    return value


def check_form(value: object, form: Any, place: str, next_step: str = "correct it") -> None:
    """Raise `DataError` for a value of another form; the arguments are those of `parse_json`."""
    if (wrong := misfit(value, form)) is not None:
        where, cause = wrong
        raise DataError(place, f"{where.removeprefix('.')} {cause}".lstrip(), next_step)


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


def _no_number(name: str) -> Any:
    raise _OutOfBoundsError(f"holds {name}, which is not a number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _OutOfBoundsError(f"holds {text[:20]}, a number that is too large")
    return value


#: Made once: that takes as long as reading a small document.
_LENIENT = json.JSONDecoder(object_pairs_hook=object_of)
_STRICT = json.JSONDecoder(
    object_pairs_hook=object_of, parse_constant=_no_number, parse_float=_finite
)


def _check_bounds(text: str, value: Any, *, halves: bool) -> None:
    """Raise `_OutOfBoundsError` for too many levels, or half a character if `halves`."""
    # Usually decided by the text, at the speed of C: few brackets can't be deep, and half a character is
    # either written as an escape, or there already.
    deep = text.count("[") + text.count("{") > MOST_LEVELS
    half = halves and not text.isascii() and _HALF.search(text) is not None
    half = half or (halves and "\\u" in text and _HALF_ESCAPE.search(text) is not None)
    if not (deep or half):
        return
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS + 1):
        if half:
            _check_halves(level)
        level = list(chain.from_iterable(map(_inner, level)))
        if not level:
            return
    raise _OutOfBoundsError(_TOO_DEEP)


def _inner(value: Any) -> Iterable[Any]:
    """The values in a list or an object; its keys, too."""
    if isinstance(value, dict):
        return chain(value, value.values())
    return value if isinstance(value, list) else ()


def _check_halves(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, str) and (found := _HALF.search(value)):
            raise _OutOfBoundsError(
                f"holds half a character ({found[0]!a} in {value[:40]!a}), which is not Unicode"
            )
