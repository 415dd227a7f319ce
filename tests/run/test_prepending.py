"""The order in which documents stand before a query."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Document, Text
from cm3run.prepending import in_order, mentioned

THINGS = ("red car", "police car", "car", "turkey", "cherry", "face with tears of joy", "fox")
PLURALS = ("red cars", "police cars", "cars", "turkeys", "cherries", "faces with tears of joy")


@pytest.mark.parametrize(
    ("query", "texts", "order"),
    [
        # a name within another's is told from it by its longer run
        ("two cars right of a police car", ["a police car", "a car"], [1, 0]),
        ("a police car right of a fox", ["a fox, small", "a police car"], [1, 0]),
        # what both have decides nothing
        (
            "on mint: an owl and a fox, noto",
            ["a fox, on mint, noto", "an owl, on mint, noto"],
            [1, 0],
        ),
        # what isn't mentioned follows, in its order
        ("an owl", ["a fox", "a car", "an owl"], [2, 0, 1]),
        ("", ["a fox", "a car"], [0, 1]),
        # equal documents keep their order
        ("a fox", ["a fox", "a fox", "a car"], [0, 1, 2]),
        ("turkeys and cherries", ["a cherry", "a turkey"], [1, 0]),
    ],
)
def test_the_order_by_hand(query: str, texts: list[str], order: list[int]) -> None:
    assert mentioned(query, texts) == order


@given(st.permutations(range(len(PLURALS))), st.data())
def test_things_are_found_in_the_order_in_which_they_are_named(
    named: list[int], data: st.DataObject
) -> None:
    # a car is in two names that are longer
    named = [place for place in named if THINGS[place] != "car"]
    several = data.draw(st.lists(st.booleans(), min_size=len(named), max_size=len(named)))
    query = " above ".join(
        f"two {PLURALS[place]}" if many else f"a {THINGS[place]}"
        for place, many in zip(named, several, strict=True)
    )
    shown = data.draw(st.permutations(named))
    texts = [f"a {THINGS[place]} in noto style, on mint" for place in shown]
    assert [shown[place] for place in mentioned(f"{query}, noto style", texts)] == named


@given(st.text(), st.lists(st.text(), max_size=5))
def test_every_text_keeps_one_place(query: str, texts: list[str]) -> None:
    assert sorted(mentioned(query, texts)) == list(range(len(texts)))


def test_documents_of_any_kind_are_ordered() -> None:
    car: Document = (Text("a car"),)
    fox: Document = (Text("a fox"), Text("by night"))
    query: Any = (Text("a fox"), Text("and a car"))
    assert in_order("mention", query, [car, fox]) == [fox, car]
    assert in_order("rank", query, [car, fox]) == [car, fox]
