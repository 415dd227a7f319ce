"""`dense` finds what brute force finds, for any documents, queries and rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cm3core.document import Image, Text
from cm3kits.retriever import HashEmbedder, ListSource
from cm3plugins.retrievers import DenseRetrieverConfig
from cm3plugins.retrievers import rules as strategy
from dense_parts import TableEmbedder, dense, picture, words
from dense_parts import own_cache as own_cache  # the fixture


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 60),
    dimension=st.integers(1, 16),
    count=st.integers(1, 12),
    num_queries=st.integers(1, 30),
)
def test_equals_brute_force(seed, size, dimension, count, num_queries):
    """Oracle: all inner products in float64 by numpy, sorted, without the excluded."""
    rng = np.random.default_rng(seed)
    embedder = HashEmbedder(dimension)
    texts = [str(rng.integers(0, 10**6)) for _ in range(size)]
    memory = ListSource(words(*texts))
    asked = [str(rng.integers(0, 10**6)) for _ in range(num_queries)]
    banned = [{f"d{i}" for i in rng.integers(0, size, rng.integers(0, 5))} for _ in asked]
    results = (
        DenseRetrieverConfig(cache=False)
        .build(memory, embedder)
        .retrieve(words(*asked), count, banned)
    )
    scores = (
        embedder.embed_texts(asked).astype(np.float64)
        @ embedder.embed_texts(texts).astype(np.float64).T
    )
    for row, ids, found in zip(scores, banned, results, strict=True):
        allowed = [i for i in range(size) if f"d{i}" not in ids]
        best = sorted(row[allowed], reverse=True)[:count]
        np.testing.assert_allclose([result.score for result in found], best, atol=2e-6)
        np.testing.assert_allclose([row[result.index] for result in found], best, atol=2e-6)


def by_brute_force(rules, documents, query, count, banned):
    """All rules over the whole ranking, in float64, one document after the other. The paper's
    section 2.1 read once more."""
    embedder = TableEmbedder()
    vectors = embedder.embed_documents(documents).astype(np.float64)
    texts = tuple(segment for segment in query if isinstance(segment, Text))
    images = tuple(segment for segment in query if isinstance(segment, Image))
    asked = {
        "text": [texts or images],
        "image": [images or texts],
        "both": [query],
        "union": [part for part in (texts, images) if part],
    }[rules["query"]]
    rankings = []
    for part in asked:
        exact = vectors @ embedder.embed_document(part).astype(np.float64)
        # what float32 might round up or down
        assume((np.abs(exact * 10**DIGITS % 1 - 0.5) > 1e-3).all())
        scores = np.round(exact, DIGITS)
        ranking = sorted(range(len(documents)), key=lambda index: (-scores[index], index))
        low, high = rules["min_similarity"], rules["max_similarity"]
        ranking = [
            index
            for index in ranking
            if (low is None or scores[index] >= low) and (high is None or scores[index] <= high)
        ]
        if rules["prefer_both"]:
            ranking.sort(key=lambda index: len(documents[index]) < 2)
        rankings.append(ranking)
    taken = []
    for place in range(len(documents)):
        for index in [ranking[place] for ranking in rankings if place < len(ranking)]:
            limit = rules["max_redundancy"]
            redundant = limit is not None and any(
                round(float(vectors[index] @ vectors[other]), DIGITS) > limit for other in taken
            )
            if index not in taken and f"d{index}" not in banned and not redundant:
                taken.append(index)
    return taken[:count]


COORDINATES = st.tuples(st.integers(0, 4), st.integers(1, 4))
DOCUMENTS = st.tuples(COORDINATES, COORDINATES, st.sampled_from(["text", "image", "both"])).map(
    lambda drawn: {
        "text": (Text(f"{drawn[0][0]} {drawn[0][1]}"),),
        "image": (picture(*drawn[1]),),
        "both": (Text(f"{drawn[0][0]} {drawn[0][1]}"), picture(*drawn[1])),
    }[drawn[2]]
)
#: Rounded to 6, one score in ten would be so near to where it is rounded up that float32 decides.
DIGITS = 3
LIMITS = st.sampled_from([None, 0.6, 0.8, 0.9, 0.97])


@settings(max_examples=100)
@given(
    documents=st.lists(DOCUMENTS, max_size=70),
    queries=st.lists(DOCUMENTS, min_size=1, max_size=4),
    count=st.integers(1, 6),
    banned=st.sets(st.integers(0, 69).map("d{}".format), max_size=4),
    rules=st.fixed_dictionaries(
        {
            "query": st.sampled_from(["text", "image", "both", "union"]),
            "max_similarity": LIMITS,
            "min_similarity": st.sampled_from([None, 0.3, 0.6]),
            "max_redundancy": LIMITS,
            "prefer_both": st.booleans(),
        }
    ),
)
def test_all_rules_together_equal_brute_force(documents, queries, count, banned, rules):
    """Many ties, many near-duplicates, every sort of document: the search is widened where it must
    be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategy, "DIGITS", DIGITS)
        found = dense(documents, **rules).retrieve(queries, count, [banned] * len(queries))
    assert [[result.index for result in own] for own in found] == [
        by_brute_force(rules, documents, query, count, banned) for query in queries
    ]
