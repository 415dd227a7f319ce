"""`bm25`: laws, the formula by hand, parity with it as written down, what has no words."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Text
from cm3core.errors import RecipeError
from cm3kits.retriever import ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import BM25RetrieverConfig
from messages import tells


class TestBM25(RetrieverContract):
    def over(self, memory):
        return BM25RetrieverConfig().build(memory, None)

    def make(self):
        return self.over(ListSource(example_documents()))


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
