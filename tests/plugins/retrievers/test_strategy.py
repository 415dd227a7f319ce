"""The rules, each by itself: by hand, and that a longer search never changes what a shorter one
gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image, ImageHole, Text
from cm3core.errors import DataError
from cm3plugins.retrievers.rules import (
    QUERY_PARTS,
    Candidate,
    Ranking,
    interleaved,
    is_redundant,
    preferred_first,
    query_parts,
    ranked,
    take,
)
from messages import tells

TEXT, IMAGE = Text("red apple"), Image("p", lambda: np.zeros((1, 1, 3), np.uint8))


def search(scores, rows=None):
    return np.float32(scores), np.asarray(range(len(scores)) if rows is None else rows, np.int64)


def indices(ranking):
    return [candidate.index for candidate in ranking.candidates]


def ranking(places, complete=True, found_by="text"):
    return Ranking(tuple(Candidate(place, 1.0, found_by) for place in places), complete)


# ---- the query


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("text", [("text", (TEXT,))]),
        ("image", [("image", (IMAGE,))]),
        ("both", [("text", (TEXT, IMAGE))]),
        ("union", [("text", (TEXT,)), ("image", (IMAGE,))]),
    ],
)
def test_what_of_a_query_is_searched_by(part, expected):
    assert query_parts((TEXT, IMAGE), part) == expected


@pytest.mark.parametrize("part", QUERY_PARTS)
def test_a_query_that_lacks_a_part_is_searched_by_the_other(part):
    assert query_parts((TEXT, ImageHole()), part) == [("text", (TEXT,))]
    assert query_parts((IMAGE, Text("")), part) == [("image", (IMAGE,))]
    with pytest.raises(DataError) as error:
        query_parts((ImageHole(),), part)
    assert tells(error.value, "retrieval query: has neither text nor a picture")


# ---- relevance


def test_by_relevance_equal_scores_in_the_memorys_order():
    found = ranked(*search([0.9, 0.5, 0.5, 0.1], [7, 5, 2, 1]), whole=True)
    assert indices(found) == [7, 2, 5, 1]
    assert [candidate.score for candidate in found.candidates] == [0.9, 0.5, 0.5, 0.1]
    assert found.complete


def test_what_may_go_on_behind_the_search_is_left_out():
    """Others may have the last score, and a smaller index."""
    found = ranked(*search([0.9, 0.5, 0.5], [7, 5, 2]), whole=False, found_by="image")
    assert found == Ranking((Candidate(7, 0.9, "image"),), False)


def test_an_empty_place_ends_the_search():
    assert ranked(*search([0.9, -np.inf], [7, -1]), whole=False) == Ranking(
        (Candidate(7, 0.9),), True
    )


def test_near_duplicates_of_the_query_and_strangers_are_left_out():
    scores = [0.95, 0.9, 0.5, 0.1]
    assert indices(ranked(*search(scores), whole=True, maximum=0.9)) == [1, 2, 3]
    assert indices(ranked(*search(scores), whole=True, minimum=0.5, maximum=0.9)) == [1, 2]
    cut = ranked(*search(scores), whole=False, minimum=0.5)
    assert indices(cut) == [0, 1, 2]
    assert cut.complete, "what follows 0.1 is less similar still"


# ---- modality


def test_both_modalities_first():
    found = preferred_first(ranking([4, 1, 8, 3]), lambda index: index in (8, 3))
    assert [(candidate.index, candidate.preferred) for candidate in found.candidates] == [
        (8, True),
        (3, True),
        (4, False),
        (1, False),
    ]
    assert indices(
        preferred_first(ranking([4, 1, 8, 3], complete=False), lambda index: index in (8, 3))
    ) == [8, 3]


# ---- union


def test_in_turn_duplicates_once():
    """Two by text and two by image."""
    merged = interleaved([ranking([1, 2, 3]), ranking([9, 1], found_by="image")])
    assert [(candidate.index, candidate.found_by) for candidate in merged.candidates] == [
        (1, "text"),
        (9, "image"),
        (2, "text"),
        (3, "text"),
    ]


def test_behind_the_end_of_an_unfinished_search_nothing_is_certain():
    merged = interleaved([ranking([1, 2, 3]), ranking([9], complete=False)])
    assert (indices(merged), merged.complete) == ([1, 9], False)
    assert indices(interleaved([ranking([5], complete=False)])) == [5]


# ---- diversity


def test_redundant_is_more_similar_than_the_limit():
    vectors = np.float32([[1, 0], [0.6, 0.8], [0, 1]])
    assert not is_redundant(vectors[1], [], 0.5)
    assert is_redundant(vectors[1], [vectors[0]], 0.5)
    assert not is_redundant(vectors[1], [vectors[0]], 0.6), "0.6 is not more than 0.6"
    assert is_redundant(vectors[1], [vectors[0], vectors[2]], 0.7), "0.8 to the other"


def test_take_skips_what_is_like_something_taken_or_not_allowed():
    vectors = np.float32([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    candidates = ranking([0, 1, 2, 3]).candidates

    def taken(number, banned=(), limit=None):
        of = None if limit is None else vectors.__getitem__
        return [
            one.index
            for one in take(candidates, number, lambda index: index not in banned, of, limit or 1.0)
        ]

    assert taken(2) == [0, 1]
    assert taken(3, limit=0.7) == [0, 2]
    assert taken(3, banned=(0,), limit=0.7) == [1, 2], "what was skipped because of 0 has its place"
    assert taken(0) == []
    first_is_like_last = np.float32([[1, 0], [0, 1], [0.8, 0.6]])
    assert (
        len(
            take(
                ranking([0, 1, 2]).candidates,
                3,
                lambda index: True,
                first_is_like_last.__getitem__,
                0.7,
            )
        )
        == 2
    )


# ---- all together


@given(data=st.data())
def test_a_longer_search_goes_on_where_a_shorter_one_ended(data):
    """Whatever the rules: the results of a search over the first places are the beginning of those
    over all."""
    size = data.draw(st.integers(1, 12))
    both = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    scores = [
        sorted(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)), reverse=True)
        for _ in range(2)
    ]
    rows = [data.draw(st.permutations(range(size))) for _ in range(2)]
    maximum, prefer = data.draw(st.sampled_from([None, 0.4])), data.draw(st.booleans())
    minimum = data.draw(st.sampled_from([None, 0.2]))

    def found(width):
        parts = []
        for own, places in zip(scores, rows, strict=True):
            order = np.lexsort((places, -np.asarray(own)))[:width]
            part = ranked(
                np.float32(own)[order] / 10,
                np.asarray(places)[order],
                whole=width >= size,
                minimum=minimum,
                maximum=maximum,
            )
            parts.append(preferred_first(part, both.__getitem__) if prefer else part)
        return interleaved(parts)

    whole = found(size)
    assert whole.complete
    for width in range(1, size):
        part = found(width)
        assert part.candidates == whole.candidates[: len(part.candidates)]
        assert not part.complete or part == whole
