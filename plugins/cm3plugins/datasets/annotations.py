"""Shared by annotated data sets: JSON files of records, and the values in them.

An invalid value raises a `DataError` that names the record and the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cm3core.errors import DataError
from cm3core.interfaces.dataset import UNKNOWN_LICENCE, Provenance
from cm3plugins.datasets.file_source import (
    MAX_TEXT_BYTES,
    existing,
    is_unicode,
    read_utf8,
    type_name,
)
from cm3run.json_text import parse_json

#: Larger files are rejected: COCO's largest has 0.5 GB.
MAX_ANNOTATION_BYTES = 2 << 30
_CC = re.compile(r"https?://creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)")


def file_at(path: str, key: str) -> Path:
    """Return the file given by a recipe key; raises `DataError` if it does not exist."""
    try:
        return existing(path, folder=False)
    except DataError as error:
        raise _under(key, error) from error


def folder_at(path: str, key: str) -> Path:
    """Return the folder given by a recipe key; raises `DataError` if it does not exist."""
    try:
        return existing(path, folder=True)
    except DataError as error:
        raise _under(key, error) from error


def _under(key: str, error: DataError) -> DataError:
    return DataError(
        error.place.replace("dataset.path", f"dataset.{key}", 1),
        error.cause,
        error.next_step.replace("dataset.path", f"dataset.{key}"),
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it can't be read, has more than `MAX_ANNOTATION_BYTES`, is not JSON, or contains an
            object with a duplicate key.
    """
    check_size(path)
    return parse_json(read_utf8(path, str(path)), str(path))


def check_size(path: Path) -> None:
    """Raise `DataError` for a file of more than `MAX_ANNOTATION_BYTES`."""
    if (size := path.stat().st_size) > MAX_ANNOTATION_BYTES:
        raise DataError(
            str(path),
            f"has {size:,} bytes, above the limit of {MAX_ANNOTATION_BYTES:,} for annotations",
            "split it into several files",
        )


def object_of(place: str, value: Any) -> dict[str, Any]:
    """Return `value` if it is an object, otherwise raise `DataError`."""
    if not isinstance(value, dict):
        raise DataError(place, f"is {type_name(value)}, not an object", "write {...}")
    return value


def list_in(place: str, values: Mapping[str, Any], key: str) -> list[Any]:
    """Return an object's list; raises `DataError` if there is none."""
    if not isinstance(values.get(key), list):
        raise _wrong(place, values, key, "a list")
    found: list[Any] = values[key]
    return found


def text_in(place: str, values: Mapping[str, Any], key: str) -> str:
    """Return an object's text, stripped; raises `DataError` if it is missing, empty or too long."""
    value = values.get(key)
    if not isinstance(value, str):
        raise _wrong(place, values, key, "a text")
    if not value.strip():
        raise DataError(place, f"its {key!r} is empty", "write it, or remove the record")
    return checked_text(place, key, value.strip())


def checked_text(place: str, key: str, text: str) -> str:
    """Return `text`; raises `DataError` if it is not Unicode or has more than `MAX_TEXT_BYTES`."""
    if not is_unicode(text):
        raise DataError(
            place,
            f"its {key!r} is not valid Unicode",
            "remove the lone surrogate (\\ud800 to \\udfff)",
        )
    if len(text) > MAX_TEXT_BYTES or len(text.encode()) > MAX_TEXT_BYTES:
        raise DataError(place, f"its {key!r} has more than {MAX_TEXT_BYTES:,} bytes", "shorten it")
    return text


def name_in(place: str, values: Mapping[str, Any], key: str) -> str:
    """Return an object's name or number, as text; raises `DataError` if there is none."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _wrong(place, values, key, "a name or a number")
    if value == "" or not is_unicode(str(value)):
        raise DataError(place, f"its {key!r} is {value!a}", "give each record a name")
    return str(value)


def number_of(place: str, key: str, value: object) -> float:
    """Return a finite number; raises `DataError` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(place, f"its {key!r} has {type_name(value)}, not a number", "correct it")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(place, f"its {key!r} has a non-finite number", "correct it")
    return number


def _wrong(place: str, values: Mapping[str, Any], key: str, wanted: str) -> DataError:
    cause = (
        f"its {key!r} is {type_name(values[key])}, not {wanted}"
        if key in values
        else f"has no {key!r}"
    )
    return DataError(place, cause, f"add {wanted}, or remove the record")


def licence_name(name: str, address: str) -> str:
    """Return the SPDX name of a Creative Commons licence, otherwise its own name.

    >>> licence_name("Attribution License", "http://creativecommons.org/licenses/by/2.0/")
    'CC-BY-2.0'
    """
    if found := _CC.match(address):
        kind, version = found[2], found[3]
        if found[1] == "publicdomain":
            return f"CC0-{version}" if kind == "zero" else name.strip() or UNKNOWN_LICENCE
        return f"CC-{kind.upper()}-{version}"
    return name.strip() or UNKNOWN_LICENCE


def provenance_of(licence: object, source: object) -> Provenance:
    """Return the provenance from a file's licence (an object with `name` and `url`) and source."""
    values = licence if isinstance(licence, dict) else {}
    name, address = (
        text if isinstance(text := values.get(key), str) and is_unicode(text) else ""
        for key in ("name", "url")
    )
    return Provenance(
        licence_name(name, address),
        source if isinstance(source, str) and is_unicode(source) else "",
    )


class Numbered:
    """Makes names unique: the second "a" is "a#2"."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"
