"""`dense` and `none`: laws, a hand-computed search, the rules one by one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from cm3core.document import Image, ImageHole, Text
from cm3core.errors import DataError
from cm3kits.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers import DenseRetrieverConfig, NoRetrieverConfig
from cm3plugins.retrievers.memory_vectors import memory_vectors, vectors_key
from dense_parts import TableEmbedder, dense, picture, words
from dense_parts import own_cache as own_cache  # the fixture
from messages import tells
from profiles import examples


class DenseContract(RetrieverContract):
    """Few examples: five classes have the same laws."""

    max_examples = examples(5)
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
    assert tells(
        capsys.readouterr().err,
        "note: 1 documents of the memory can't be embedded and are never found, the first: b.png: is not",
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
    assert tells(error.value, "retrieval query: has neither text nor a picture")
