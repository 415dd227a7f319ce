"""`usearch`: the laws of retrievers, parity with exact search, kept beside a bank, and what is said
without the package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cm3core.errors import DataError, MissingPackageError, RecipeError
from cm3kits.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.retrievers.usearch import UsearchRetrieverConfig
from cm3run.bank import VectorRows
from messages import tells


def unit_vectors(num_rows, dimension=16, seed=0):
    rows = np.random.default_rng(seed).standard_normal((num_rows, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch", None)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    # another test may have imported it
    monkeypatch.delitem(sys.modules, "cm3plugins.retrievers.usearch_engine", raising=False)
    with pytest.raises(MissingPackageError) as error:
        UsearchRetrieverConfig().build(ListSource(example_documents()), HashEmbedder())
    assert tells(error.value, "retriever: the package 'usearch'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"connectivity": 1},
            "retriever.connectivity: is 1, must ... least 2",
        ),
        (
            {"expansion_search": 0},
            "retriever.expansion_search: is 0, must ... least 1",
        ),
        (
            {"query": "txet"},
            "retriever.query: is 'txet'; did ... 'text'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError) as error:
        UsearchRetrieverConfig(**options).check()
    assert tells(error.value, message)


class TestUsearch(RetrieverContract):
    def make(self):
        return self.over(ListSource(example_documents()))

    def over(self, memory):
        pytest.importorskip("usearch")
        return UsearchRetrieverConfig(query="both", cache=False).build(memory, HashEmbedder())


def test_looking_everywhere_is_brute_force():
    pytest.importorskip("usearch")
    rows, queries = unit_vectors(400), unit_vectors(9, seed=1)
    index = UsearchRetrieverConfig(expansion_search=400, num_candidates=400).open_index(
        VectorRows([rows[:150], rows[150:]]), None, None
    )
    scores_QW, rows_QW = index.search(queries, 10)
    expected = queries.astype(np.float64) @ rows.astype(np.float64).T
    np.testing.assert_array_equal(rows_QW, np.argsort(-expected, axis=1)[:, :10])
    np.testing.assert_allclose(scores_QW, -np.sort(-expected, axis=1)[:, :10], atol=1e-6)


def test_it_is_kept_and_read_again(tmp_path, capsys):
    pytest.importorskip("usearch")
    rows = VectorRows.of(unit_vectors(300))
    config = UsearchRetrieverConfig()
    first = config.open_index(rows, tmp_path, "bank")
    assert "note: building an index 'usearch' of 300 documents" in capsys.readouterr().err
    again = config.open_index(rows, tmp_path, "bank")
    assert capsys.readouterr().err == ""
    assert first.description == again.description
    np.testing.assert_array_equal(
        first.search(rows.take(range(20)), 5)[1], again.search(rows.take(range(20)), 5)[1]
    )
    UsearchRetrieverConfig(connectivity=8).open_index(rows, tmp_path, "bank")
    assert tells(
        capsys.readouterr().err,
        f"... note: rebuilding the index {tmp_path / 'usearch'}: it was built with other sizes",
    )


def test_nothing_to_search_and_a_vector_that_is_none():
    pytest.importorskip("usearch")
    empty = UsearchRetrieverConfig().open_index(VectorRows([], 4), None, None)
    assert empty.search(np.ones((1, 4), np.float32), 2)[1].tolist() == [[-1, -1]]
    rows = unit_vectors(30)
    rows[4, 4] = np.nan
    with pytest.raises(
        DataError, match="document 4 of the memory: its vector holds NaN or infinity"
    ):
        UsearchRetrieverConfig().open_index(VectorRows.of(rows), None, None)
