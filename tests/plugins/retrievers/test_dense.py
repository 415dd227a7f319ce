"""`dense` and `none`: laws, a hand-computed search, parity with brute force, rules, cache."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cm3core.bank import VectorRows
from cm3core.document import Image, ImageHole, Text
from cm3core.errors import DataError, RecipeError
from cm3core.testing.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import DenseRetrieverConfig, NoRetrieverConfig, strategy
from cm3plugins.retrievers.index.flat import FlatIndex
from cm3plugins.retrievers.memory_vectors import memory_vectors, vectors_key
from cm3plugins.retrievers.vector_retriever import VectorRetriever


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


class DenseContract(RetrieverContract):
    """Few examples: five classes have the same laws."""

    max_examples = 10
    settings: ClassVar[dict[str, Any]] = {}

    def over(self, memory):
        return DenseRetrieverConfig(cache=False, **self.settings).build(memory, HashEmbedder())


class TestDenseByText(DenseContract):
    settings: ClassVar[dict[str, Any]] = {"max_similarity": 0.6, "min_similarity": -0.2}

    def make(self):
        return self.over(ListSource(example_documents()))


class TestDenseByBoth(DenseContract):
    settings: ClassVar[dict[str, Any]] = {"query": "both", "prefer_both": True}

    def make(self):
        return self.over(ListSource(example_documents()))


class TestDenseByTextAndByImage(DenseContract):
    """All rules of the paper."""

    settings: ClassVar[dict[str, Any]] = {
        "query": "union",
        "prefer_both": True,
        "max_similarity": 0.9,
        "max_redundancy": 0.5,
    }

    def waive_what_is_excluded_makes_room(self):
        return (
            "max_redundancy skips what is like a result before, so that more is found in the room"
        )

    def make(self):
        return self.over(ListSource(example_documents()))


class TestDenseUnionAlone(DenseContract):
    settings: ClassVar[dict[str, Any]] = {"query": "union"}

    def make(self):
        return self.over(ListSource(example_documents()))


class TestTextsWithTexts(DenseContract):
    """Each part of the query is compared with the same part of the documents."""

    settings: ClassVar[dict[str, Any]] = {
        "compare": "same",
        "query": "union",
        "prefer_both": True,
        "max_similarity": 0.9,
        "max_redundancy": 0.5,
    }

    def waive_what_is_excluded_makes_room(self):
        return (
            "max_redundancy skips what is like a result before, so that more is found in the room"
        )

    def make(self):
        return self.over(ListSource(example_documents()))


class TestNone(RetrieverContract):
    def over(self, memory):
        return NoRetrieverConfig().build(memory, None)

    def make(self):
        return self.over(ListSource(example_documents()))


class TableEmbedder(HashEmbedder):
    """Text "x y" is the vector (x, y); a picture's first pixel is (red, green)."""

    def __init__(self):
        super().__init__(2)

    def _embed_texts(self, texts):
        return np.array([[float(part) for part in text.split()] for text in texts], np.float32)

    def _embed_images(self, images):
        return np.array([image[0, 0, :2] for image in images], np.float32)


def words(*pairs):
    return [(Text(pair),) for pair in pairs]


def picture(red, green):
    return Image(f"{red} {green}", lambda: np.full((1, 1, 3), (red, green, 0), np.uint8))


def dense(documents, **settings):
    return DenseRetrieverConfig(cache=False, **settings).build(
        ListSource(documents), TableEmbedder()
    )


def test_a_search_by_hand():
    """Cosines of (1, 0) with (1, 0), (3, 4), (0, 1), (4, 3): 1, 0.6, 0, 0.8."""
    found = dense(words("1 0", "3 4", "0 1", "4 3")).retrieve(words("2 0"), 3)[0]
    assert [(result.id, result.score) for result in found] == [
        ("d0", 1.0),
        ("d3", 0.8),
        ("d1", 0.6),
    ]


def test_a_text_is_compared_with_texts_and_a_picture_with_pictures():
    """Of the last one, text (3, 4) and picture (0, 1) average to a direction nearer to (0, 1)."""
    documents = [
        (Text("1 0"), picture(0, 1)),
        (Text("0 1"), picture(1, 0)),
        *words("4 3"),
        (picture(4, 3),),
        (Text("3 4"), picture(0, 1)),
    ]
    same = dense(documents, compare="same", query="union")

    def found(query):
        return [(one.id, one.score, one.found_by) for one in same.retrieve([query], 4)[0]]

    by_text = [("d0", 1.0, "text"), ("d2", 0.8, "text"), ("d4", 0.6, "text"), ("d1", 0.0, "text")]
    assert found((Text("1 0"),)) == by_text  # not d3, which has no text
    by_picture = [("d1", 1.0, "image"), ("d3", 0.8, "image"), ("d0", 0.0, "image")]
    assert found((picture(1, 0),)) == [*by_picture, ("d4", 0.0, "image")]
    in_turn = [by_text[0], by_picture[0], by_text[1], by_picture[1]]
    assert found((Text("1 0"), picture(1, 0))) == in_turn
    averaged = dense(documents).retrieve(words("1 0"), 3)[0]
    assert [one.id for one in averaged] == ["d2", "d3", "d0"]


def test_a_memory_without_pictures_finds_nothing_by_a_picture():
    same = dense(words("1 0", "0 1"), compare="same")
    assert same.retrieve([(picture(1, 0),)], 2) == [[]]
    assert [one.id for one in same.retrieve(words("0 1"), 2)[0]] == ["d1", "d0"]


class LooksEmbedder(TableEmbedder):
    """Compared with pictures, red and green change places."""

    looks_fingerprint = "looks"

    def _embed_looks(self, images):
        return np.array([image[0, 0, 1::-1] for image in images], np.float32)


def test_pictures_are_compared_by_their_looks():
    """Also the mean of several; texts as ever."""
    memory = ListSource([(Text("1 0"), picture(0, 1)), (picture(3, 4), picture(3, 4))])
    vectors = memory_vectors(memory, LooksEmbedder(), part="image", cache=False)
    np.testing.assert_allclose(vectors, [[1, 0], [0.8, 0.6]], atol=1e-6)
    both = [[2**-0.5, 2**-0.5], [0.6, 0.8]]
    np.testing.assert_allclose(memory_vectors(memory, LooksEmbedder()), both, atol=1e-6)
    same = DenseRetrieverConfig(cache=False, compare="same", query="union").build(
        memory, LooksEmbedder()
    )
    found = same.retrieve([(Text("1 0"), picture(0, 1))], 2)[0]
    assert [(one.id, one.score, one.found_by) for one in found] == [
        ("d0", 1.0, "text"),
        ("d1", pytest.approx(0.8), "image"),
    ]
    own, other = (vectors_key(memory, one(), "image") for one in (TableEmbedder, LooksEmbedder))
    assert own != other
    own, other = (vectors_key(memory, one()) for one in (TableEmbedder, LooksEmbedder))
    assert own == other


def test_vectors_of_parts_are_kept_apart():
    memory = ListSource([(Text("1 0"), picture(0, 1)), *words("0 1")])
    keys = {vectors_key(memory, TableEmbedder(), part) for part in (None, "text", "image")}
    assert len(keys) == 3
    for _ in range(2):  # the second time from the cache
        vectors = memory_vectors(memory, TableEmbedder(), part="image")
        assert vectors.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_thresholds_skip_near_duplicates_and_strangers():
    documents = words("1 0", "3 4", "0 1", "4 3")
    found = dense(documents, max_similarity=0.9, min_similarity=0.1).retrieve(words("2 0"), 4)[0]
    assert [result.id for result in found] == ["d3", "d1"]


def test_more_near_duplicates_than_the_margin_do_not_hide_the_rest():
    documents = words(*["1 0"] * 100, "3 4", "4 3")
    found = dense(documents, max_similarity=0.9).retrieve(words("1 0", "0 1"), 2)
    assert [result.id for result in found[0]] == ["d101", "d100"]
    assert [result.id for result in found[1]] == ["d100", "d101"]


def test_more_ties_than_the_margin_still_come_in_the_memorys_order():
    """faiss keeps any of those that tie at the end of a search."""
    memory = ListSource(words(*["3 4"] * 50, *["1 0"] * 60))
    retriever = DenseRetrieverConfig(cache=False).build(memory, TableEmbedder())
    few, many = (retriever.retrieve(words("1 0"), count)[0] for count in (2, 40))
    assert [result.index for result in many] == list(range(50, 90))
    assert few == many[:2]


def test_the_rules_give_up_at_their_depth():
    documents = words(*["1 0"] * 40, "3 4")
    assert dense(documents, max_similarity=0.9, search_depth=20).retrieve(words("1 0"), 1) == [[]]
    assert [
        r.id
        for r in dense(documents, max_similarity=0.9, search_depth=41).retrieve(words("1 0"), 1)[0]
    ] == ["d40"]


def test_documents_with_both_modalities_come_first():
    """Cosines with (1, 0): 1 of the text alone, 0.89 of text and picture (1, 0) + (3, 4) / 5."""
    documents = [(Text("1 0"),), (Text("1 0"), picture(3, 4))]
    by_score = dense(documents).retrieve(words("1 0"), 2)[0]
    assert [(result.id, result.preferred) for result in by_score] == [("d0", True), ("d1", True)]
    preferred = dense(documents, prefer_both=True).retrieve(words("1 0"), 2)[0]
    assert [(result.id, result.preferred) for result in preferred] == [("d1", True), ("d0", False)]
    assert [result.score for result in preferred] == [pytest.approx(0.894427), 1.0]


def test_no_two_documents_that_are_nearly_the_same():
    documents = words("1 0", "100 1", "3 4", "0 1")
    assert [r.id for r in dense(documents).retrieve(words("1 0"), 2)[0]] == ["d0", "d1"]
    assert [r.id for r in dense(documents, max_redundancy=0.9).retrieve(words("1 0"), 3)[0]] == [
        "d0",
        "d2",
        "d3",
    ]


def test_by_text_and_by_image_in_turn():
    query = (Text("1 0"), picture(0, 5))
    found = dense(words("1 0", "0 1", "100 1", "1 100"), query="union").retrieve([query], 4)[0]
    assert [(result.id, result.found_by) for result in found] == [
        ("d0", "text"),
        ("d1", "image"),
        ("d2", "text"),
        ("d3", "image"),
    ]


def test_a_content_key_excludes_every_document_that_holds_it():
    documents = [(Text("1 0"), picture(1, 0)), (Text("3 4"), picture(1, 0)), *words("0 1", "0  1")]
    retriever = dense(documents)
    assert [r.id for r in retriever.retrieve(words("1 0"), 4, [{"image:1 0"}])[0]] == ["d2", "d3"]
    text_key = retriever.memory.content_keys(2)
    assert [r.id for r in retriever.retrieve(words("1 0"), 4, [{"d0", *text_key}])[0]] == ["d1"]


def test_an_unreadable_picture_of_the_memory_costs_its_document_only(capsys):
    def broken():
        raise DataError("b.png", "is not a picture", "replace it")

    documents = [*words("1 0"), (Text("1 0"), Image("b", broken)), *words("3 4")]
    found = dense(documents).retrieve(words("1 0"), 3)[0]
    assert [result.id for result in found] == ["d0", "d2"]
    assert capsys.readouterr().err == (
        "note: 1 documents of the memory can't be embedded and are never found, the first: b.png: "
        "is not a picture\n"
    )


def test_exact_ties_come_in_the_memorys_order():
    assert [
        r.id for r in dense(words("1 0", "0 1", "2 0", "3 0")).retrieve(words("1 0"), 3)[0]
    ] == ["d0", "d2", "d3"]


def test_parts_of_a_query():
    query = (Text("1 0"), picture(0, 5))
    documents = words("1 0", "1 1", "0 1")
    assert {
        part: (lambda r: (r.id, r.found_by))(
            dense(documents, query=part).retrieve([query], 1)[0][0]
        )
        for part in ("text", "image", "both")
    } == {"text": ("d0", "text"), "image": ("d2", "image"), "both": ("d1", "text")}
    assert (
        dense(documents, query="image").retrieve([(Text("1 0"), ImageHole())], 1)[0][0].found_by
        == "text"
    )
    with pytest.raises(DataError) as error:
        dense(documents).retrieve([(ImageHole(),)], 1)
    assert str(error.value) == (
        "retrieval query: has neither text nor a picture\n"
        "  next: give it one, or use num_retrieved=0"
    )


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


def test_an_empty_memory_finds_nothing():
    assert dense([]).retrieve(words("1 0"), 3) == [[]]


class CountingEmbedder(HashEmbedder):
    num_texts = 0

    def _embed_texts(self, texts):
        self.num_texts += len(texts)
        return super()._embed_texts(texts)


def test_vectors_are_computed_once_and_a_damaged_cache_is_replaced(tmp_path):
    memory, embedder = ListSource(words("a", "b", "c")), CountingEmbedder()
    first = memory_vectors(memory, embedder)
    np.testing.assert_array_equal(memory_vectors(memory, embedder), first)
    assert embedder.num_texts == 3
    path = tmp_path / "cache" / "embeddings" / f"{vectors_key(memory, embedder)}.npy"
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(memory_vectors(memory, embedder), first)
    assert embedder.num_texts == 6
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_cache_knows_embedder_ids_and_captions():
    one = vectors_key(ListSource(words("a", "b")), HashEmbedder(4))
    assert one != vectors_key(ListSource(words("a", "b")), HashEmbedder(5))
    assert one != vectors_key(ListSource(words("a", "c")), HashEmbedder(4))
    assert one != vectors_key(ListSource(words("a", "b"), ids=["x", "y"]), HashEmbedder(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"query": "txet"},
            "retriever.query: is 'txet'; did you mean 'text'?\n  next: use one of these",
        ),
        (
            {"max_similarity": 1.5},
            "retriever.max_similarity: is 1.5, and a similarity is a cosine\n  next: use -1 to "
            "1, or null",
        ),
        (
            {"max_redundancy": -2},
            "retriever.max_redundancy: is -2, and a similarity is a cosine\n  next: use -1 to 1, "
            "or null",
        ),
        (
            {"search_depth": 0},
            "retriever.search_depth: is 0, must be at least 1\n  next: correct the value",
        ),
        (
            {"num_ranks": 0},
            "retriever.num_ranks: is 0, must be at least 1\n  next: correct the value",
        ),
        (
            {"query_dropout": 1.0},
            "retriever.query_dropout: is 1.0, and it is a share of the words\n"
            "  next: use 0 or more and less than 1; the paper's is 0.2",
        ),
        (
            {"index": "falt"},
            "retriever.index: is 'falt'; did you mean 'flat'?\n  next: use one of these",
        ),
        (
            {"num_retrieved": -1},
            "retriever.num_retrieved: is -1, must be at least 0\n  next: correct the value",
        ),
        (
            {"max_similarity": 0.1, "min_similarity": 0.2},
            "retriever.max_similarity: is below min_similarity, so that nothing could be found\n "
            " next: raise one or lower the other",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig(**settings).check()
    assert str(error.value) == message


def test_dense_without_an_embedder_and_none_with_documents():
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig().build(ListSource(words("a")), None)
    assert str(error.value) == (
        "retriever: searches by vectors, which needs an embedder, and the recipe has none\n"
        "  next: add embedder=light_encoder"
    )
    with pytest.raises(RecipeError) as refused:
        NoRetrieverConfig(num_retrieved=2).check()
    assert str(refused.value) == (
        "retriever.num_retrieved: is 2, and the retriever 'none' finds nothing\n"
        "  next: use 0, or another retriever: retriever=dense"
    )


def test_vectors_of_another_memory_are_an_internal_error():
    index = FlatIndex(VectorRows.of(np.zeros((3, 8), np.float32)))
    with pytest.raises(AssertionError):
        VectorRetriever(DenseRetrieverConfig(), ListSource(words("a", "b")), HashEmbedder(), index)


def test_the_estimate_of_embedding_leaves_out_the_drawing_before_it(monkeypatch, capsys):
    """320 documents, a second each; all pictures are drawn with the first one, in ten minutes. The first line
    is due after a minute."""
    now, drawn = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def draw():
        if not drawn:
            now[0] += 600
        drawn.append(True)
        return np.full((2, 2, 3), 9, np.uint8)

    class SlowEmbedder(HashEmbedder):
        def _embed_texts(self, texts):
            now[0] += len(texts)
            return super()._embed_texts(texts)

    memory = ListSource([(Text(f"{row} 1"), Image(f"p{row}", draw)) for row in range(320)])
    memory_vectors(memory, SlowEmbedder(), cache=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "embedding the memory: 64 of 320, 20%, 4:16 left"


def test_a_first_picture_that_cannot_be_read_is_only_noted(capsys):
    def broken():
        raise DataError("p1", "is torn", "replace it")

    memory = ListSource([(Image("p1", broken),), *words("0 1")])
    vectors = memory_vectors(memory, TableEmbedder(), cache=False)
    np.testing.assert_array_equal(vectors, [[0, 0], [0, 1]])
    assert "1 documents of the memory can't be embedded" in capsys.readouterr().err
