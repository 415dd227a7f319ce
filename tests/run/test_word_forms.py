"""Words of a text in singular and plural."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3run.words import shares_a_word, singulars_of


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        *(
            ("cats", "cat"),
            ("berries", "berry"),
            ("ties", "tie"),
            ("buses", "bus"),
            ("boxes", "box"),
        ),
        *(("wolves", "wolf"), ("knives", "knife"), ("doves", "dove"), ("horses", "horse")),
    ],
)
def test_plurals(plural: str, singular: str) -> None:
    assert singular in singulars_of(plural)
    assert shares_a_word(f"{plural}, filled", f"{singular}, outline")
    assert shares_a_word(f"{singular}, filled", f"{plural}, outline")


@pytest.mark.parametrize("word", ["glass", "gas", "bus", "s", "ss"])
def test_words_that_are_no_plurals(word: str) -> None:
    assert not list(singulars_of(word))


@given(st.text())
def test_any_text_shares_its_words_with_itself(text: str) -> None:
    assert shares_a_word(text, text)
