"""JSON that users bring, and a key that is twice in an object."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import DataError
from cm3run.json_text import parse_json
from messages import tells

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_it_reads_what_python_writes(value: object) -> None:
    assert parse_json(json.dumps(value), "x") == value


def test_one_key_among_many_is_found_at_once() -> None:
    """In time that grows with their number: anybody may send a server such an object."""
    names = [f'"{number}": 0' for number in range(50_000)]
    with pytest.raises(DataError, match="has the key '49999' twice"):
        parse_json("{" + ", ".join([*names, names[-1]]) + "}", "x")


@pytest.mark.parametrize(
    ("content", "cause", "next_step"),
    [
        (
            '{"a.png": "x", "b": 1, "a.png": "y"}',
            "has the key 'a.png' twice in one object",
            "keep one of the two",
        ),
        ('[{"a": {"é": 1, "\\u00e9": 1}}]', "has the key '\\xe9' twice in one object", None),
        ("{", "is not JSON: Expecting property name enclosed in double", "correct it"),
        ("[" * 100_000, "is nested deeper than 64 levels", "correct it"),
    ],
)
def test_what_is_wrong_is_named(content: str, cause: str, next_step: str | None) -> None:
    with pytest.raises(DataError) as caught:
        parse_json(content, "captions.json")
    assert caught.value.place == "captions.json"
    assert tells(caught.value.cause, cause)
    assert caught.value.next_step == (next_step or "keep one of the two")
