"""`facets`: laws, thing and hand in turn, what is excluded, queries of one facet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Document, Image, PixelArray, Text, text_of
from cm3core.errors import RecipeError
from cm3icons.facets import FacetsRetrieverConfig
from cm3kits.retriever import ListSource, RetrieverContract, example_documents
from cm3run.nearness import nearness
from messages import tells

ICONS = (
    "bell, outline, lucide",
    "bell, filled, mdi",
    "bell, outline, tabler",
    "plug, outline, lucide",
    "plug, filled, mdi",
    "bell ring, outline, lucide",
    "bus, outline, lucide",
)


class TestFacets(RetrieverContract):
    def over(self, memory):
        return FacetsRetrieverConfig().build(memory, None)

    def make(self):
        return self.over(ListSource(example_documents()))


def found(query: str, count: int, exclude: tuple[str, ...] = ()) -> list[str]:
    source = ListSource([(Text(line),) for line in ICONS])
    retriever = FacetsRetrieverConfig().build(source, None)
    banned = [source.id(ICONS.index(one)) for one in exclude]
    [results] = retriever.retrieve([(Text(query),)], count, [banned])
    return [text_of(source.document(one.index)) for one in results]


def test_the_thing_in_another_hand_and_another_thing_in_the_hand_by_turns() -> None:
    """Of the bells, the outlined one is nearer in hand; of lucide's others, the ringing bell is nearer in thing."""
    assert found("bell, outline, lucide", 4, ("bell, outline, lucide",)) == [
        "bell, outline, tabler",
        "bell ring, outline, lucide",
        "bell, filled, mdi",
        found("bell, outline, lucide", 4, ("bell, outline, lucide",))[3],
    ]


def test_the_own_drawing_is_the_thing_and_never_the_hand() -> None:
    things = found("bell, outline, lucide", 2)
    assert things == ["bell, outline, lucide", "bell ring, outline, lucide"]


def test_without_a_hand_only_things_are_found() -> None:
    assert {one.partition(",")[0] for one in found("plug", 7)} == {"plug"}


def test_an_unknown_thing_still_has_a_hand() -> None:
    assert all(one.endswith("lucide") for one in found("zebra, lucide", 3))


def bars(number: int) -> PixelArray:
    """A bar above others: the more bars two pictures have in common, the nearer they are."""
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[2:5, 2:30] = 0
    for place in range(number):
        pixels[7 + 4 * place : 9 + 4 * place, 2:30] = 0
    return pixels


def drawn(text: str, pixels: PixelArray) -> Document:
    return Text(text), Image(text, lambda: pixels)


@given(st.integers(1, 6), st.floats(0, 1))
def test_no_picture_for_the_hand_is_too_near_to_the_querys(number: int, most: float) -> None:
    """The thing may be as near as it is. A query without a picture gets all."""
    texts = [f"thing {place}, outline, lucide" for place in range(1, 7)]
    memory = [drawn(text, bars(place)) for place, text in enumerate(texts, 1)]
    memory.append(drawn("bell, filled, mdi", bars(number)))
    source = ListSource(memory)
    retriever = FacetsRetrieverConfig(max_nearness=most).build(source, None)
    text, pixels = "bell, outline, lucide", bars(number)
    [with_picture, without] = retriever.retrieve([drawn(text, pixels), (Text(text),)], 7)
    near = [nearness(pixels, bars(place)) for place in range(1, 7)]
    expected = {place for place, one in enumerate(near) if one <= most}
    assert {one.index for one in with_picture} == expected | {6}
    assert len(without) == 7


def test_wrong_settings() -> None:
    for settings, message in (
        (
            {"separator": ""},
            "retriever.separator: is empty ... use what stands behind the thing, such as ','",
        ),
        ({"b": 2.0}, "retriever.b: is 2.0, must be at most 1"),
        ({"max_nearness": -0.1}, "retriever.max_nearness: is -0.1, must be at least 0"),
    ):
        with pytest.raises(RecipeError) as error:
            FacetsRetrieverConfig(**settings).check()
        assert tells(error.value, message)
