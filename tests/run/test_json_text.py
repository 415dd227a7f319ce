"""JSON that users bring, and a key that is twice in an object."""

from __future__ import annotations

import json
from typing import Any, NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.arguments import Count
from cm3core.errors import DataError
from cm3run.json_text import MOST_LEVELS, StoredName, parse_json
from messages import tells

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
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


class Inner(TypedDict):
    numbers: list[Count]


class Form(TypedDict):
    name: StoredName
    inner: NotRequired[list[Inner]]
    other: NotRequired[Any]


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("[]", "is [], must be a mapping"),
        ("{}", "has no 'name'"),
        ('{"name": 1}', "name is 1, must be a text"),
        ('{"name": "a\\u0000"}', "name is 'a\\x00', must be a text without the character 0"),
        ('{"name": "", "inner": [{}]}', "inner[0] has no 'numbers'"),
        (
            '{"name": "", "inner": [{"numbers": [1, 0]}]}',
            "inner[0].numbers[1] is 0 (use 1 or more)",
        ),
        ('{"name": "", "inner": [{"numbers": [true]}]}', "is True, must be a whole number"),
        ('{"name": "", "inner": [{"numbers": [1.0]}]}', "is 1.0, must be a whole number"),
        ('{"name": "\\ud83d"}', "holds half a character ('\\ud83d'"),
        ('{"name": "", "\\udfff": 0}', "holds half a character ('\\udfff'"),
        ('{"name": "\ud800"}', "holds half a character ('\\ud800'"),
        (b'{"name": "\xed\xa0\x80"}', "is not UTF-8 (byte 10)"),
        ('{"name": ""}'.encode("utf-16"), "is not UTF-8 (byte 0)"),
        ('{"name": "", "other": NaN}', "holds NaN, which is not a number in JSON"),
        ('{"name": "", "other": -1e999}', "holds -1e999, a number that is too large"),
        (f'{{"name": "", "other": {"9" * 5000}}}', "holds a number of too many digits"),
        (f'{{"name": "", "other": {"[" * 99}{"]" * 99}}}', "is nested deeper than 64 levels"),
        ('{"name": "' + "a" * 999 + '"}', "has more than 900 bytes"),
    ],
)
def test_what_does_not_have_its_form_is_named(content: str | bytes, cause: str) -> None:
    most = 900 if "900" in cause else 10_000
    with pytest.raises(DataError) as caught:
        parse_json(content, "here", "write it again", form=Form, most_bytes=most)
    assert (caught.value.place, caught.value.next_step) == ("here", "write it again")
    assert cause in caught.value.cause


def test_what_has_its_form() -> None:
    pair = '{"name": "\\ud83d\\ude00", "inner": [{"numbers": [1, 2], "new": null}], "later": 1}'
    assert parse_json(pair, "here", form=Form)["name"] == "\U0001f600"
    deep = "[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1)
    assert parse_json(f'{{"name": "", "other": {deep}}}', "here", form=Form)["other"]
    # data sets of others have no form: what is in a record is checked where it is used
    assert parse_json('{"similarity": NaN, "exif": "\\ud800"}', "here")["exif"] == "\ud800"
