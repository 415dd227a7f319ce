"""`random`: laws, evenness, the same documents for the same query."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Codes, Text
from cm3kits.retriever import ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import RandomRetrieverConfig
from cm3plugins.retrievers.random import shuffled


class TestRandom(RetrieverContract):
    def over(self, memory):
        return RandomRetrieverConfig().build(memory, None)

    def make(self):
        return self.over(ListSource(example_documents()))


def drawn(query, count, **settings):
    memory = ListSource([(Text(str(index)),) for index in range(10)])
    return [
        result.index
        for result in RandomRetrieverConfig(**settings)
        .build(memory, None)
        .retrieve([query], count)[0]
    ]


def test_the_query_decides():
    """Its text, its pictures, and the seed."""
    pictures = [(Text("a"), Codes(np.full(4, code, np.int32), (2, 2))) for code in range(20)]
    assert drawn((Text("a"),), 4) == drawn((Text("a"),), 4)
    for others in ([(Text(f"a {i}"),) for i in range(20)], pictures):
        assert len({tuple(drawn(query, 4)) for query in others}) > 10
    assert len({tuple(drawn((Text("a"),), 4, seed=seed)) for seed in range(20)}) > 10


def test_every_document_is_equally_probable_at_every_rank():
    """4,000 queries, 400 expected in each cell, standard deviation 19."""
    ranks = [Counter(), Counter()]
    for number in range(4000):
        for rank, index in enumerate(drawn((Text(f"query {number}"),), 2)):
            ranks[rank][index] += 1
    for counts in ranks:
        assert all(abs(counts[index] - 400) < 85 for index in range(10))


@given(size=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
def test_a_shuffle_has_everything_once(size, seed):
    assert sorted(shuffled(size, np.random.default_rng(seed))) == list(range(size))


def test_all_orders_of_a_shuffle_are_equally_probable():
    """6 orders of 3, 500 expected each, standard deviation 20."""
    counts = Counter(tuple(shuffled(3, np.random.default_rng(seed))) for seed in range(3000))
    assert len(counts) == 6
    assert all(abs(count - 500) < 90 for count in counts.values())


def test_a_few_of_very_many_cost_little():
    order = shuffled(10**12, np.random.default_rng(0))
    assert len({next(order) for _ in range(5)}) == 5
