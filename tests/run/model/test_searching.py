"""Searches that a model remembers: a text is searched for once, with a number and what is left out; pictures always."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from cm3core.document import Document, Image, Text, text_of
from cm3core.errors import DataError
from cm3core.interfaces.retriever import Retrieved
from cm3run.model import searching
from cm3run.model.prepending import search
from cm3run.model.results import RetrievedDocument
from cm3run.model.searching import Prepended, ReadDocuments, SearchCache
from toy_model import MEMORY, FirstRetriever, picture, toy_model


class Counting(FirstRetriever):
    def __init__(self) -> None:
        self.searches: list[list[str]] = []

    def _retrieve(
        self, queries: Sequence[Document], num_retrieved: int, exclude: Sequence[Collection[str]]
    ) -> list[list[Retrieved]]:
        self.searches.append([text_of(query) for query in queries])
        allowed = [
            [name for name in MEMORY if name not in names and f"text:{name}" not in names]
            for names in exclude
        ]
        return [
            [Retrieved(MEMORY.index(name), name, 0.5) for name in own[:num_retrieved]]
            for own in allowed
        ]


def texts(*words: str) -> list[Document]:
    return [(Text(word),) for word in words]


def test_what_is_new_is_searched_for_together() -> None:
    cache, retriever = SearchCache(), Counting()
    first = cache.search(retriever, texts("red"), 2, [()])
    again = cache.search(retriever, texts("blue", "red", "green"), 2, [()] * 3)
    assert retriever.searches == [["red"], ["blue", "green"]]
    assert again[1] == first[0]
    assert again == [
        (results, None) for results in retriever.retrieve(texts("blue", "red", "green"), 2)
    ]
    again[1][0].clear()
    assert cache.search(retriever, texts("red"), 2, [()]) == first, "lists are the caller's own"


def test_number_and_what_is_left_out_count() -> None:
    cache, retriever = SearchCache(), Counting()
    [(found, _)] = cache.search(retriever, texts("red"), 2, [()])
    [(fewer, _)] = cache.search(retriever, texts("red"), 1, [()])
    [(others, _)] = cache.search(retriever, texts("red"), 2, [{found[0].id}])
    assert len(retriever.searches) == 3
    assert fewer == found[:1]
    assert found[0] not in others


def test_pictures_are_always_searched_for() -> None:
    cache, retriever = SearchCache(), Counting()
    query: Document = (Text("red"), Image("a", lambda: picture(0)))
    for _ in range(2):
        cache.search(retriever, [query], 1, [()])
    assert len(retriever.searches) == 2


def test_another_memory_forgets() -> None:
    cache, before, after = SearchCache(), Counting(), Counting()
    for retriever in (before, after, after):
        cache.search(retriever, texts("red"), 1, [()])
    assert [len(one.searches) for one in (before, after)] == [1, 1]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MOST_SEARCHED", 2)
    cache, retriever = SearchCache(), Counting()
    for word in ("a", "b", "a", "c", "a", "b"):
        cache.search(retriever, texts(word), 1, [()])
    assert retriever.searches == [["a"], ["b"], ["c"], ["b"]]


def test_a_memory_of_its_own_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """... so nothing of it is remembered."""
    model = toy_model()
    model.components.retriever = retriever = Counting()
    for _ in range(2):
        search(model, texts("red"), 1, [()])
    assert len(retriever.searches) == 1
    monkeypatch.setattr(type(model.recipe.retriever), "own_memory", True)
    for _ in range(2):
        search(model, texts("red"), 1, [()])
    assert len(retriever.searches) == 3


def test_documents_are_read_once() -> None:
    read, retriever = [], Counting()
    documents = ReadDocuments()

    def reading(found: Retrieved) -> Prepended:
        read.append(found.id)
        return (Text(found.id),), RetrievedDocument(found.id, found.score, found.id, None)

    one, other = (Retrieved(place, MEMORY[place], 0.5) for place in range(2))
    for found in (one, other, one, one):
        document = documents.of(retriever, found, reading)
        assert document is not None
        assert document[0] == (Text(found.id),)
    assert read == [one.id, other.id]
    documents.of(Counting(), one, reading)
    assert read == [one.id, other.id, one.id], "another memory"


def test_of_many_that_cannot_be_read_few_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    documents, retriever = ReadDocuments(), Counting()

    def broken(found: Retrieved) -> Prepended:
        raise DataError(f"{found.id}.svg", "is broken", "mend it")

    for _ in range(2):
        for place in range(25):
            assert documents.of(retriever, Retrieved(place, f"d{place}", 0.5), broken) is None
    assert capsys.readouterr().err.splitlines() == [
        "note: retrieved document d0 is left out: d0.svg: is broken",
        "note: 10 retrieved documents are left out so far; the last is d9: d9.svg: is broken",
    ]
