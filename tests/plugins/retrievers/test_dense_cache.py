"""`dense`: vectors that are kept, settings that are refused, what embedding tells of itself."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pytest

from cm3core.document import Image, Text
from cm3core.errors import DataError, RecipeError
from cm3kits.retriever import HashEmbedder, ListSource
from cm3plugins.retrievers import DenseRetrieverConfig, NoRetrieverConfig
from cm3plugins.retrievers.dense import VectorRetriever
from cm3plugins.retrievers.index.base import FlatIndex
from cm3plugins.retrievers.memory_vectors import memory_vectors, vectors_key
from cm3run.bank import VectorRows
from dense_parts import TableEmbedder, dense, words
from dense_parts import own_cache as own_cache  # the fixture
from messages import tells


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


class QuickSource(ListSource):
    """Knows without reading its documents whether they changed; counts how many are read."""

    num_read = 0
    quick_fingerprint = "first"

    def _document(self, index, rng):
        self.num_read += 1
        return super()._document(index, rng)


def test_a_cache_is_found_again_without_reading_the_documents(tmp_path):
    embedder = CountingEmbedder()
    first = memory_vectors(ListSource(words("a", "b", "c")), embedder)  # by an earlier version
    memory = QuickSource(words("a", "b", "c"))
    np.testing.assert_array_equal(memory_vectors(memory, embedder), first)
    assert (embedder.num_texts, memory.num_read) == (3, 3)
    again = QuickSource(words("a", "b", "c"))
    np.testing.assert_array_equal(memory_vectors(again, embedder), first)
    assert (embedder.num_texts, again.num_read) == (3, 0)
    changed = QuickSource(words("a", "b", "d"))
    changed.quick_fingerprint = "second"
    assert not np.array_equal(memory_vectors(changed, embedder), first)


@pytest.mark.parametrize("damage", [b"", b"../../x", b"\xff", b"0" * 31])
def test_a_damaged_note_of_a_key_is_written_again(tmp_path, damage):
    embedder = CountingEmbedder()
    first = memory_vectors(QuickSource(words("a", "b", "c")), embedder)
    [note] = (tmp_path / "cache" / "embeddings").glob("*.key")
    good = note.read_bytes()
    note.write_bytes(damage)
    np.testing.assert_array_equal(
        memory_vectors(QuickSource(words("a", "b", "c")), embedder), first
    )
    assert (embedder.num_texts, note.read_bytes()) == (3, good)


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
            "retriever.query: is 'txet'; did ... 'text'",
        ),
        (
            {"max_similarity": 1.5},
            "retriever.max_similarity: is 1.5, but ... use -1 to 1",
        ),
        (
            {"max_redundancy": -2},
            "retriever.max_redundancy: is -2, but ... use -1 to 1",
        ),
        (
            {"search_depth": 0},
            "retriever.search_depth: is 0, must ... least 1",
        ),
        (
            {"num_ranks": 0},
            "retriever.num_ranks: is 0, must ... least 1",
        ),
        (
            {"query_dropout": 1.0},
            "retriever.query_dropout: is 1.0, but ... use 0 ... than 1",
        ),
        (
            {"index": "falt"},
            "retriever.index: is 'falt'; did ... 'flat'",
        ),
        (
            {"num_retrieved": -1},
            "retriever.num_retrieved: is -1, must ... least 0",
        ),
        (
            {"max_similarity": 0.1, "min_similarity": 0.2},
            "retriever.max_similarity: is below min_similarity",
        ),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig(**settings).check()
    assert tells(error.value, message)


def test_dense_without_an_embedder_and_none_with_documents():
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig().build(ListSource(words("a")), None)
    assert tells(error.value, "retriever: searches by vectors and needs an")
    with pytest.raises(RecipeError) as refused:
        NoRetrieverConfig(num_retrieved=2).check()
    assert tells(refused.value, "retriever.num_retrieved: is 2, but ... 'none' ... use 0")


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
    assert lines[:2] == [
        "embedding the memory: 64 of 320, 20%, 4:16 left",
        "note: embedding the memory, 320 documents, takes about 5 minutes",
    ]


def test_a_first_picture_that_cannot_be_read_is_only_noted(capsys):
    def broken():
        raise DataError("p1", "is torn", "replace it")

    memory = ListSource([(Image("p1", broken),), *words("0 1")])
    vectors = memory_vectors(memory, TableEmbedder(), cache=False)
    np.testing.assert_array_equal(vectors, [[0, 0], [0, 1]])
    assert "1 documents of the memory can't be embedded" in capsys.readouterr().err


def test_a_memorys_texts_are_read_once_for_its_keys(monkeypatch):
    """As many keys as parts; another memory's texts are its own, and the key is the hash that it always was."""
    memory, other = ListSource(words("a", "b")), ListSource(words("a", "c"))
    embedder, read, whole = HashEmbedder(4), [], ListSource.document
    monkeypatch.setattr(
        ListSource, "document", lambda self, *given: read.append(self) or whole(self, *given)
    )
    keys = [vectors_key(memory, embedder, part) for part in (None, "text", "image")]
    assert len(set(keys)) == 3
    assert read == [memory, memory]
    assert vectors_key(other, embedder) != keys[0]
    assert vectors_key(memory, embedder) == keys[0]
    text = "".join(f"{memory.id(place)}\0{word}\0" for place, word in enumerate("ab"))
    expected = hashlib.sha256(f"{embedder.fingerprint}\0{memory.fingerprint}\0{text}".encode())
    assert keys[0] == expected.hexdigest()[:32]
