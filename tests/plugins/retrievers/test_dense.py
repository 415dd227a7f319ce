"""`dense` and `none`: laws, a hand-computed search, parity with brute force, rules, cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm3core.document import Image, ImageHole, Text
from cm3core.errors import DataError, RecipeError
from cm3core.testing.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import DenseRetrieverConfig, NoRetrieverConfig
from cm3plugins.retrievers.dense import DenseRetriever
from cm3plugins.retrievers.memory_vectors import memory_vectors, vectors_key


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))


class TestDense(RetrieverContract):
    def make(self):
        return DenseRetrieverConfig(query="both", cache=False).build(ListSource(example_documents()), HashEmbedder())


class TestDenseByText(RetrieverContract):
    def make(self):
        return DenseRetrieverConfig(max_similarity=0.6, min_similarity=-0.2, cache=False).build(
            ListSource(example_documents()), HashEmbedder())


class TestNone(RetrieverContract):
    def make(self):
        return NoRetrieverConfig().build(ListSource(example_documents()), None)


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


def dense(documents, **settings):
    return DenseRetrieverConfig(cache=False, **settings).build(ListSource(documents), TableEmbedder())


def test_a_search_by_hand():
    """Cosines of (1, 0) with (1, 0), (3, 4), (0, 1), (4, 3): 1, 0.6, 0, 0.8."""
    found = dense(words("1 0", "3 4", "0 1", "4 3")).retrieve(words("2 0"), 3)[0]
    assert [(result.id, result.score) for result in found] == [("d0", 1.0), ("d3", 0.8), ("d1", 0.6)]


def test_thresholds_skip_near_duplicates_and_strangers():
    documents = words("1 0", "3 4", "0 1", "4 3")
    found = dense(documents, max_similarity=0.9, min_similarity=0.1).retrieve(words("2 0"), 4)[0]
    assert [result.id for result in found] == ["d3", "d1"]


def test_more_near_duplicates_than_the_margin_do_not_hide_the_rest():
    documents = words(*["1 0"] * 100, "3 4", "4 3")
    found = dense(documents, max_similarity=0.9).retrieve(words("1 0", "0 1"), 2)
    assert [result.id for result in found[0]] == ["d101", "d100"]
    assert [result.id for result in found[1]] == ["d100", "d101"]


def test_exact_ties_come_in_the_memorys_order():
    assert [r.id for r in dense(words("1 0", "0 1", "2 0", "3 0")).retrieve(words("1 0"), 3)[0]] == ["d0", "d2", "d3"]


def test_parts_of_a_query():
    pixels = np.zeros((1, 1, 3), np.uint8)
    pixels[0, 0] = (0, 5, 0)
    query = (Text("1 0"), Image("p", lambda: pixels))
    documents = words("1 0", "1 1", "0 1")
    assert {part: (lambda r: (r.id, r.found_by))(dense(documents, query=part).retrieve([query], 1)[0][0])
            for part in ("text", "image", "both")} == {"text": ("d0", "text"), "image": ("d2", "image"), "both": ("d1", "text")}
    assert dense(documents, query="image").retrieve([(Text("1 0"), ImageHole())], 1)[0][0].found_by == "text"
    with pytest.raises(DataError) as error:
        dense(documents).retrieve([(ImageHole(),)], 1)
    assert str(error.value) == ("retrieval query: has neither text nor a picture\n"
                                "  next: give it one, or use num_retrieved=0")


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 60), dimension=st.integers(1, 16), count=st.integers(1, 12),
       num_queries=st.integers(1, 30))
def test_equals_brute_force(seed, size, dimension, count, num_queries):
    """Oracle: all inner products in float64 by numpy, sorted, without the excluded."""
    rng = np.random.default_rng(seed)
    embedder = HashEmbedder(dimension)
    texts = [str(rng.integers(0, 10**6)) for _ in range(size)]
    memory = ListSource(words(*texts))
    asked = [str(rng.integers(0, 10**6)) for _ in range(num_queries)]
    banned = [{f"d{i}" for i in rng.integers(0, size, rng.integers(0, 5))} for _ in asked]
    results = DenseRetrieverConfig(cache=False).build(memory, embedder).retrieve(words(*asked), count, banned)
    scores = embedder.embed_texts(asked).astype(np.float64) @ embedder.embed_texts(texts).astype(np.float64).T
    for row, ids, found in zip(scores, banned, results, strict=True):
        allowed = [i for i in range(size) if f"d{i}" not in ids]
        best = sorted(row[allowed], reverse=True)[:count]
        np.testing.assert_allclose([result.score for result in found], best, atol=2e-6)
        np.testing.assert_allclose([row[result.index] for result in found], best, atol=2e-6)


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


@pytest.mark.parametrize(("settings", "message"), [
    ({"query": "txet"}, "retriever.query: is 'txet'; did you mean 'text'?\n  next: use one of these"),
    ({"max_similarity": 1.5}, "retriever.max_similarity: is 1.5, and a similarity is a cosine\n  next: use -1 to 1, or null"),
    ({"num_retrieved": -1}, "retriever.num_retrieved: is -1\n  next: use 0 or more"),
    ({"max_similarity": 0.1, "min_similarity": 0.2},
     "retriever.max_similarity: is below min_similarity, so that nothing could be found\n  next: raise one or lower the other"),
])
def test_bad_settings(settings, message):
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig(**settings).check()
    assert str(error.value) == message


def test_dense_without_an_embedder_and_none_with_documents():
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig().build(ListSource(words("a")), None)
    assert str(error.value) == ("retriever: 'dense' needs an embedder and the recipe has none\n"
                                "  next: add embedder=light_encoder")
    with pytest.raises(RecipeError) as refused:
        NoRetrieverConfig(num_retrieved=2).check()
    assert str(refused.value) == ("retriever.num_retrieved: is 2, and the retriever 'none' finds nothing\n"
                                  "  next: use 0, or another retriever: retriever=dense")


def test_vectors_of_another_memory_are_an_internal_error():
    with pytest.raises(AssertionError):
        DenseRetriever(DenseRetrieverConfig(), ListSource(words("a", "b")), HashEmbedder(), np.zeros((3, 8), np.float32))
