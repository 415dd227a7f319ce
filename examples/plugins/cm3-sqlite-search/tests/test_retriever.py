"""The laws of retrievers, and the behaviour specific to this one."""

import math
import sqlite3

import pytest
from cm3_sqlite_search import SQLiteRetrieverConfig

from cm3core.document import Text
from cm3core.errors import DataError, MissingPackageError
from cm3kits.retriever import RetrieverContract
from cm3kits.samples import ListSource

TEXTS = ["a red apple", "two apples, red and green", "a green pear"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CM3_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class TestSQLite(RetrieverContract):
    config = SQLiteRetrieverConfig()
    max_examples = 10  # every example of some laws writes an index


class TestWithoutStems(RetrieverContract):
    config = SQLiteRetrieverConfig(stem=False)
    max_examples = 5


def built(tmp_path, texts=TEXTS, **keys):
    return SQLiteRetrieverConfig(cache=str(tmp_path), **keys).build(
        ListSource([(Text(text),) for text in texts]), None
    )


def found(retriever, text):
    return [result.index for result in retriever.retrieve([(Text(text),)], 9)[0]]


def test_a_score_by_hand(tmp_path):
    """One of three documents has "pear", of 3 words like the mean of 3, 5 and 3: idf ln(2.5 / 1.5),
    times BM25's fraction."""
    (result,) = built(tmp_path).retrieve([(Text("PEAR"),)], 9)[0]
    assert result.index == 2
    assert result.score == pytest.approx(
        math.log(2.5 / 1.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 3 / (11 / 3)))
    )


def test_words_that_most_documents_have_are_asked_for_only_alone(tmp_path):
    retriever = built(tmp_path, ["apple style", "pear style", "plum style"])
    assert found(retriever, "pear style") == [1]
    assert found(retriever, "style") == [0, 1, 2]


def test_stems(tmp_path):
    assert found(built(tmp_path), "Apples") == [0, 1]
    assert found(built(tmp_path, stem=False), "Apples") == [1]


@pytest.mark.parametrize(
    "text", ["", "_", '"', "NEAR(red", "red AND NOT apple*", "text:red OR (", "nothing like it"]
)
def test_a_query_is_words_and_never_syntax(tmp_path, text):
    assert set(found(built(tmp_path), text)) <= {0, 1, 2}


def test_the_index_is_built_once_and_anew_when_a_text_changes(tmp_path):
    built(tmp_path)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    built(tmp_path)
    assert [path.stat().st_mtime_ns] == [before]
    assert found(built(tmp_path, ["a red apple", "a blue apple", "a green pear"]), "blue") == [1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_index_says_what_to_do(tmp_path):
    path = built(tmp_path).path
    path.write_bytes(b"no database" * 100)
    with pytest.raises(DataError) as error:
        found(built(tmp_path), "red")
    assert (
        str(error.value)
        == f"{path}: can't be searched (file is not a database)\n  next: delete it; it will be rebuilt"
    )


def test_a_python_without_full_text_search_is_told(tmp_path, monkeypatch):
    class Connection(sqlite3.Connection):
        def execute(self, *_):
            raise sqlite3.OperationalError("no such module: fts5")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given: connect(*given, factory=Connection))
    with pytest.raises(MissingPackageError) as error:
        built(tmp_path)
    assert str(error.value) == (
        "retriever sqlite: this Python's SQLite has no FTS5 (no such module: fts5)\n"
        "  next: use another build of Python, or retriever=bm25"
    )
    assert list(tmp_path.iterdir()) == [], "nothing half written stays"
