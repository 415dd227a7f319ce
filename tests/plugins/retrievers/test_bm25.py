"""`bm25`: laws, the formula by hand, parity with it as written down, what has no words, phrases, coverage."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3kits.retriever import ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import BM25RetrieverConfig
from cm3plugins.retrievers.bm25 import terms_of
from messages import tells


class TestBM25(RetrieverContract):
    settings: ClassVar[dict[str, Any]] = {}

    def over(self, memory):
        return BM25RetrieverConfig(**self.settings).build(memory, None)

    def make(self):
        return self.over(ListSource(example_documents()))


class TestPhrases(TestBM25):
    settings: ClassVar[dict[str, Any]] = {"terms": "phrases"}


class TestCoverage(TestBM25):
    settings: ClassVar[dict[str, Any]] = {"coverage": True}


class TestCoverageOfPhrases(TestBM25):
    settings: ClassVar[dict[str, Any]] = {"terms": "phrases", "coverage": True}


class TestKeys(RetrieverContract):
    config = BM25RetrieverConfig(terms="phrases", coverage=True)


def texts(*lines):
    return [(Text(line),) for line in lines]


def found(lines, query, count=10, **settings):
    retriever = BM25RetrieverConfig(**settings).build(ListSource(texts(*lines)), None)
    return [(result.index, result.score) for result in retriever.retrieve(texts(query), count)[0]]


def test_by_hand():
    """Three documents of two words each, so that length plays no part: idf("red") = ln(1 + 1.5 /
    2.5), "apple" ln(1 + 2.5 / 1.5); a word that is there once counts 1 / (1 + k1)."""
    scores = dict(found(["red apple", "Red, house", "blue house"], "red apple"))
    red, apple = (math.log(1 + 1.5 / 2.5) / 2.5, math.log(1 + 2.5 / 1.5) / 2.5)
    assert scores == {0: pytest.approx(red + apple, abs=1e-5), 1: pytest.approx(red, abs=1e-5)}


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=6).map(" ".join)


@given(
    lines=st.lists(WORDS, min_size=1, max_size=12),
    query=WORDS,
    k1=st.floats(0, 3),
    b=st.floats(0, 1),
)
def test_equals_the_formula(lines, query, k1, b):
    """Oracle: BM25 as Lucene has it (Kamphuis et al. 2020), summed by plain Python."""
    documents = [Counter(line.split()) for line in lines]
    mean = sum(map(Counter.total, documents)) / len(documents)
    expected = {}
    for index, counts in enumerate(documents):
        score = 0.0
        for word in set(query.split()):
            frequency = sum(word in other for other in documents)
            idf = math.log(1 + (len(lines) - frequency + 0.5) / (frequency + 0.5))
            if counts[word]:
                score += (
                    idf * counts[word] / (counts[word] + k1 * (1 - b + b * counts.total() / mean))
                )
        if score > 0:
            expected[index] = score
    results = found(lines, query, count=len(lines), k1=k1, b=b)
    assert dict(results) == {
        index: pytest.approx(score, abs=2e-5) for index, score in expected.items()
    }


@given(
    lines=st.lists(WORDS, min_size=1, max_size=30),
    query=WORDS,
    count=st.integers(1, 5),
    excluded=st.sets(st.integers(0, 4), max_size=3),
)
def test_few_are_the_beginning_of_all(lines, query, count, excluded):
    """The best few are found from the postings of some words only, and are what a search of the whole
    memory ranks first, equal scores and excluded documents included."""
    memory = ListSource(texts(*lines))
    retriever = BM25RetrieverConfig().build(memory, None)
    names = {memory.id(index) for index in excluded if index < len(lines)}
    every, few = (
        retriever.retrieve(texts(query), number, [names])[0] for number in (len(lines), count)
    )
    assert few == every[:count]


def test_equal_scores_come_in_the_memorys_order():
    assert [index for index, _ in found(["red car", "blue", "red bus", "red hat"], "Red!", 2)] == [
        0,
        2,
    ]


def test_nothing_shared_nothing_found():
    assert found(["red apple"], "blue house") == []
    assert found(["red apple"], "") == []
    assert found(["", "  "], "red") == []
    assert found([], "red") == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": -1.0}, "retriever.k1: is -1.0 ... use 0 ... 1.2"),
        ({"b": 1.5}, "retriever.b: is 1.5\n  next: use 0..1; 0.75 is usual"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(RecipeError) as error:
        BM25RetrieverConfig(**settings).check()
    assert tells(error.value, message)


def test_phrases_by_hand():
    words = ["small", "red", "car", "noto", "style"]
    phrases = ["small red", "red car", "small red car", "noto style"]
    assert sorted(terms_of("small red car, noto style")) == sorted([*words, *phrases])


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("red. car", []),
        ("red - car", []),
        ("red\ncar", []),
        ("red  CAR", ["red car"]),
        ("red-car", ["red car"]),
        ("cafe\u0301 bar", ["cafe bar"]),
        ("", []),
    ],
)
def test_a_phrase_is_within_a_clause(text, phrases):
    """Spaces, a hyphen between two words, and the accents that decompose a letter do not end a clause."""
    assert [term for term in terms_of(text) if " " in term] == phrases


def test_a_phrase_tells_a_car_from_a_police_car():
    """By words, all three hold "police" and "car" once in three words, so the memory's order decides."""
    lines = ["car of police", "police, big car", "big police car"]
    assert [index for index, _ in found(lines, "police car", 1)] == [0]
    assert [index for index, _ in found(lines, "police car", 1, terms="phrases")] == [2]


#: Forty things whose names contain each other, in five styles: 200 captions.
THINGS = [
    *(
        f"{kind}{thing}"
        for thing in ("car", "boat", "lamp", "drum", "bird")
        for kind in ("", "police ", "racing ", "toy ", "old ", "old toy ")
    ),
    *(
        "lobster",
        "tulip",
        "anvil",
        "violin",
        "teapot",
        "cactus",
        "kite",
        "lantern",
        "walnut",
        "comet",
    ),
]
CAPTIONS = [
    f"{thing}, {style} style"
    for thing in THINGS
    for style in ("noto", "twemoji", "openmoji", "fluent", "blob")
]


def _share_of_both_named(pairs, **settings):
    """How often the first two documents are those of the two named things."""
    retriever = BM25RetrieverConfig(**settings).build(ListSource(texts(*CAPTIONS)), None)
    queries = texts(*(f"a {one} above a {other}, noto style" for one, other in pairs))
    right = [
        {CAPTIONS[result.index].partition(",")[0] for result in results} == set(pair)
        for results, pair in zip(retriever.retrieve(queries, 2), pairs, strict=True)
    ]
    return sum(right) / len(right)


def test_two_named_things_are_found():
    """Plain BM25 takes the rarest thing twice, or names that contain the one that is asked for."""
    assert len(CAPTIONS) == 200
    rng = random.Random(0)
    pairs = [
        pair
        for pair in (rng.sample(THINGS, 2) for _ in range(300))
        if not set(pair[0].split()) & set(pair[1].split())
    ]
    assert _share_of_both_named(pairs) < 0.5
    assert _share_of_both_named(pairs, terms="phrases", coverage=True) == 1


@given(
    lines=st.lists(WORDS, min_size=1, max_size=20),
    query=WORDS,
    terms=st.sampled_from(["words", "phrases"]),
    excluded=st.sets(st.integers(0, 5), max_size=3),
)
def test_coverage_begins_with_the_best_and_loses_none(lines, query, terms, excluded):
    """The first is one of the best by plain BM25's score times its share of a document's score for itself, and so are those
    that cover nothing new ordered. All together are the same documents."""
    memory = ListSource(texts(*lines))
    names = {memory.id(index) for index in excluded if index < len(lines)}
    retrievers = [
        BM25RetrieverConfig(terms=terms, coverage=coverage).build(memory, None)
        for coverage in (False, True)
    ]
    plain, covering = (one.retrieve(texts(query), len(lines), [names])[0] for one in retrievers)
    assert sorted(one.index for one in covering) == sorted(one.index for one in plain)
    for_itself = {
        place: one.score
        for place, line in enumerate(lines)
        for one in retrievers[0].retrieve(texts(line), len(lines))[0]
        if one.index == place
    }
    scores = {one.index: one.score**2 / for_itself[one.index] for one in plain}
    if plain:
        assert scores[covering[0].index] == pytest.approx(max(scores.values()), abs=1e-3)
    rest = [one for one in covering if not one.preferred]
    assert [one.score for one in rest] == pytest.approx(
        [scores[one.index] for one in rest], abs=1e-3
    )


def test_exclusions_are_looked_up_for_few_documents_only():
    """A thousand documents contain the query's word; those that may be taken next are asked for, not all."""

    class Counting(ListSource):
        asked: ClassVar[set[int]] = set()

        def content_keys(self, index):
            self.asked.add(index)
            return super().content_keys(index)

    memory = Counting(texts(*(f"red thing{number}" for number in range(1000))))
    retriever = BM25RetrieverConfig(coverage=True).build(memory, None)
    retriever._retrieve(texts("red"), 2, [{"other"}])
    assert 2 <= len(memory.asked) < 200


def test_a_word_of_the_prompt_that_is_half_a_name_fetches_no_other_thing():
    """Of the words of an arrow's name the query has two of three, of a pen's all; of two styles, the one that is asked for."""
    lines = [
        *(
            f"a {name}, {style} style"
            for name in ("left-right arrow", "pen", "cap")
            for style in ("noto", "noto-v1")
        ),
    ]
    settings = {"terms": "phrases", "coverage": True}
    query = "a pen at the right and a cap at the left, noto-v1 style"
    assert {lines[index] for index, _ in found(lines, query, 2, **settings)} == {
        "a pen, noto-v1 style",
        "a cap, noto-v1 style",
    }
