"""Values that YAML reads otherwise than people do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.errors import RecipeError
from cm3core.recipe.layers import mapping_of, value_of
from messages import tells


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("010", "has 010, which YAML reads as the octal number 8. Next: write 10 or 8"),
        (
            "-0_12",
            "has -0_12, which YAML reads as the octal number -10. Next: write -12 or -10",
        ),
        ("[1, 010]", "has 010, which YAML reads as the octal number 8. Next: write 10 or 8"),
        ("{a: [010]}", "has 010, which YAML reads as the octal number 8. Next: write 10 or 8"),
        (
            "16:9",
            "has 16:9, which YAML reads as the base-60 number 969. Next: write 969, or",
        ),
    ],
)
def test_numbers_of_other_bases_are_refused(written: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        value_of(f"decoder.num_layers={written}", f"command line: decoder.num_layers={written}")
    assert caught.value.place == f"command line: decoder.num_layers={written}"
    assert tells(f"{caught.value.cause}. Next: {caught.value.next_step}", message)
    assert caught.value.next_step.endswith(" in quotes for a text")
    with pytest.raises(RecipeError) as caught:
        mapping_of(f"name: x\ndecoder:\n  num_layers: {written}\n", "mine.yaml")
    assert caught.value.place == "mine.yaml, line 3"


@given(st.integers(-(10**6), 10**6), st.booleans())
def test_decimal_numbers_are_read(number: int, quoted: bool) -> None:
    written = f"'{number}'" if quoted else str(number)
    expected = str(number) if quoted else number
    assert value_of(f"a.b={written}", "x") == {"a": {"b": expected}}
    assert mapping_of(f"a: {written}", "x") == {"a": expected}


@pytest.mark.parametrize(
    ("written", "value"),
    [("007", 7), ("00", 0), ("'010'", "010"), ("0x10", 16), ("1_000", 1000), ("010.5", 10.5)],
)
def test_what_means_the_same_to_people_is_read(written: str, value: object) -> None:
    assert value_of(f"a={written}", "x") == {"a": value}


def test_aliases_are_read() -> None:
    assert mapping_of("a: &x [1]\nb: [*x, *x]", "x") == {"a": [1], "b": [[1], [1]]}
    with pytest.raises(RecipeError, match="recursive aliases are not supported"):
        mapping_of("a: &x [*x]", "x")
