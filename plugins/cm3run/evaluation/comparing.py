"""Which keys differ between two evaluations: those of the model may, those of the measurement may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = "(absent)"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> the two values, of the keys in which two JSON objects differ.

    >>> differences({"a": {"b": 1, "c": [2]}}, {"a": {"b": 3, "c": [2]}, "d": 4})
    {'a.b': (1, 3), 'd': ('(absent)', 4)}
    """
    left, right = dict(_flat(one)), dict(_flat(other))
    return {
        key: (left.get(key, _ABSENT), right.get(key, _ABSENT))
        for key in dict.fromkeys([*left, *right])
        if left.get(key, _ABSENT) != right.get(key, _ABSENT)
    }


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, own in value.items():
            yield from _flat(own, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
