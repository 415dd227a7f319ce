"""Vector indexes: hand-computed searches, parity with brute force, and what approximate ones must keep.

Legend: Q queries, W results a query, M rows, E dimension.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustered_rows import APPROXIMATE, clustered
from cm3core.errors import DataError, RecipeError
from cm3kits.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.indexes import threads
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index import (
    IndexOptions,
    open_index,
    opening,
)
from cm3plugins.retrievers.index.base import VectorIndex
from cm3run.bank import VectorRows
from messages import tells


def brute_force(rows_ME, queries_QE, width):
    """Scores in float64 and rows, best first, equal scores by row."""
    scores_QM = queries_QE.astype(np.float64) @ rows_ME.astype(np.float64).T
    order = np.argsort(-scores_QM, axis=1, kind="stable")[:, :width]
    return np.take_along_axis(scores_QM, order, 1), order


def in_parts(rows_ME, *cuts):
    return VectorRows(
        [np.ascontiguousarray(part) for part in np.split(rows_ME, cuts)], rows_ME.shape[1]
    )


# ---- searching


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_a_search_by_hand(index):
    """Of (1, 0), (3, 4), (0, 1), (4, 3) in three arrays, with (2, 1): 2, 10, 1, 11; and a place for
    a fifth that is not there."""
    rows = np.array([[1, 0], [3, 4], [0, 1], [4, 3]], np.float32)
    scores_QW, rows_QW = open_index(in_parts(rows, 1, 1), IndexOptions(index=index)).search(
        np.array([[2, 1]], np.float32), 5
    )
    assert scores_QW.tolist() == [[11, 10, 2, 1, -np.inf]]
    assert rows_QW.tolist() == [[3, 1, 0, 2, -1]]
    assert (scores_QW.dtype, rows_QW.dtype) == (np.float32, np.int64)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 80),
    dimension=st.integers(1, 12),
    num_queries=st.integers(0, 30),
    width=st.integers(0, 90),
    cuts=st.lists(st.integers(0, 80), max_size=4).map(sorted),
)
def test_flat_is_brute_force_whatever_the_parts(
    seed, num_rows, dimension, num_queries, width, cuts
):
    """Small whole numbers: scores are exact, and many are equal."""
    rng = np.random.default_rng(seed)
    rows, queries = (
        rng.integers(-3, 4, (number, dimension)).astype(np.float32)
        for number in (num_rows, num_queries)
    )
    index = open_index(in_parts(rows, *cuts), IndexOptions(index="flat"))
    scores_QW, rows_QW = index.search(queries, width)
    expected, _ = brute_force(rows, queries, width)
    found = min(width, num_rows)
    np.testing.assert_array_equal(scores_QW[:, :found], expected)
    assert (rows_QW[:, found:] == -1).all()
    assert (scores_QW[:, found:] == -np.inf).all()
    assert all(len(set(own)) == found for own in rows_QW[:, :found].tolist())
    np.testing.assert_array_equal(
        np.take_along_axis(queries @ rows.T, rows_QW[:, :found], 1), scores_QW[:, :found]
    )


def test_flat_reads_memory_mapped_arrays_where_they_lie(tmp_path, monkeypatch):
    """faiss is given the mapped arrays themselves."""
    rows = clustered(100)
    np.save(tmp_path / "a.npy", rows[:60])
    np.save(tmp_path / "b.npy", rows[60:])
    parts = [np.load(tmp_path / name, mmap_mode="r") for name in ("a.npy", "b.npy")]
    faiss, seen = pytest.importorskip("faiss"), []
    knn = faiss.knn
    monkeypatch.setattr(
        faiss, "knn", lambda queries, part, *rest: seen.append(part) or knn(queries, part, *rest)
    )
    found = open_index(VectorRows(parts), IndexOptions()).search(rows[::10], 3)[1]
    np.testing.assert_array_equal(found, brute_force(rows, rows[::10], 3)[1])
    assert all(np.shares_memory(one, part) for one, part in zip(seen, parts, strict=True))


@pytest.mark.parametrize("index", ["ivf", "pq"])
@settings(max_examples=8)
@given(seed=st.integers(0, 2**16), num_rows=st.integers(256, 600), width=st.integers(1, 40))
def test_looking_everywhere_is_brute_force(index, seed, num_rows, width):
    """With all lists and all rows as candidates nothing can be missed, and scores are exact. (A
    graph may not reach a node.)"""
    rows, queries = clustered(num_rows, seed=seed), clustered(7, seed=seed + 1)
    options = IndexOptions(index=index, num_candidates=num_rows, nprobe=10_000)
    scores_QW, rows_QW = open_index(in_parts(rows, 100), options, progress=False).search(
        queries, width
    )
    expected_scores, expected_rows = brute_force(rows, queries, width)
    np.testing.assert_allclose(scores_QW, expected_scores, atol=1e-6)
    assert (rows_QW == expected_rows).mean() > 0.99  # near ties may change places


@pytest.fixture(scope="module", params=APPROXIMATE)
def searched(request) -> tuple[VectorIndex, np.ndarray, np.ndarray]:
    """An index as it sets itself, over 3,000 rows; its rows, and queries beside them."""
    rows, queries = clustered(3000), clustered(3000)[::30] + 0.05 * clustered(100, seed=5)
    index = open_index(
        in_parts(rows, 1000, 1700), IndexOptions(index=request.param), progress=False
    )
    return index, rows, queries.astype(np.float32)


def test_the_setting_it_chooses_finds_nearly_all(searched):
    index, rows, queries = searched
    hits = (
        index.search(queries, 4)[1][:, :, None] == brute_force(rows, queries, 4)[1][:, None]
    ).any(2)
    assert hits.mean() >= 0.95
    assert not index.exact


def test_scores_are_inner_products_and_results_sorted(searched):
    index, rows, queries = searched
    scores_QW, rows_QW = index.search(queries, 20)
    np.testing.assert_allclose(
        scores_QW, np.einsum("qwe,qe->qw", rows[rows_QW], queries), atol=1e-6
    )
    assert (np.diff(scores_QW, axis=1) <= 0).all()
    assert all(len(set(own)) == 20 for own in rows_QW.tolist())


def test_fewer_is_a_prefix_of_more_and_a_batch_is_its_queries(searched):
    index, _, queries = searched
    many = index.search(queries, 50)[1]
    np.testing.assert_array_equal(index.search(queries, 3)[1], many[:, :3])
    np.testing.assert_array_equal(
        np.concatenate([index.search(query[None], 50)[1] for query in queries[:9]]), many[:9]
    )


def test_the_setting_that_finds_too_little_is_seen():
    """One list of many finds little: what `measured_setting` measures is real."""
    rows = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    poor = open_index(
        VectorRows.of(rows), IndexOptions(index="ivf", nprobe=1, num_candidates=4), progress=False
    )
    good = open_index(VectorRows.of(rows), IndexOptions(index="ivf"), progress=False)
    expected = brute_force(rows, rows[::40], 5)[1]
    shares = [
        (index.search(rows[::40], 5)[1][:, :, None] == expected[:, None]).any(2).mean()
        for index in (poor, good)
    ]
    assert shares[0] < 0.9 < 0.98 < shares[1]
    assert poor.description == "ivf (lists 62), nprobe 1, num_candidates 4"


def test_equal_documents_do_not_make_it_look_everywhere():
    """A hundred different vectors forty times each: which of forty is found is no matter, and one
    list has them all."""
    rows = np.repeat(clustered(100, 8), 40, 0)
    index = open_index(VectorRows.of(rows), IndexOptions(index="ivf"), progress=False)
    assert index.setting <= 4


class DenseContract(RetrieverContract):
    index = "flat"

    def make(self):
        return self.over(ListSource(example_documents()))

    def over(self, memory):
        return DenseRetrieverConfig(index=self.index, query="both", cache=False).build(
            memory, HashEmbedder()
        )


class TestDenseIVF(DenseContract):
    index = "ivf"


class TestDenseHNSW(DenseContract):
    index = "hnsw"


# ---- choosing


def test_auto_is_flat_up_to_a_size(monkeypatch):
    rows = VectorRows.of(clustered(300))
    assert open_index(rows, IndexOptions()).description == "flat, exact"
    monkeypatch.setattr(opening, "FLAT_NUMBERS", 300 * 16 - 1)
    assert open_index(rows, IndexOptions(), progress=False).description.startswith(
        "ivf (lists 4), nprobe "
    )


@pytest.mark.parametrize("index", ["auto", "flat", *APPROXIMATE])
def test_nothing_to_search(index):
    scores, rows = open_index(VectorRows([], 4), IndexOptions(index=index)).search(
        np.ones((2, 4), np.float32), 3
    )
    assert rows.tolist() == [[-1, -1, -1]] * 2
    assert (scores == -np.inf).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"index": "hsnw"},
            "retriever.index: is 'hsnw'; did ... 'hnsw'",
        ),
        ({"nprobe": 0}, "retriever.nprobe: is 0, must ... least 1"),
        (
            {"num_candidates": -1},
            "retriever.num_candidates: is -1, must ... least 1",
        ),
        (
            {"index": "flat", "nprobe": 4},
            "retriever.nprobe: is set, but ... 'flat'",
        ),
        (
            {"index": "pq", "ef_search": 4},
            "retriever.ef_search: is set, but ... 'pq'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig(**options).check()
    assert tells(error.value, message)


def test_too_few_rows_for_pq():
    with pytest.raises(RecipeError) as error:
        open_index(VectorRows.of(clustered(255)), IndexOptions(index="pq"))
    assert tells(error.value, "retriever.index: 'pq' needs 256 ... has 255")


@pytest.mark.parametrize("index", APPROXIMATE)
def test_a_vector_that_is_none(index):
    rows = clustered(300)
    rows[123, 1] = np.inf
    with pytest.raises(DataError) as error:
        open_index(in_parts(rows, 100), IndexOptions(index=index), progress=False)
    assert tells(error.value, "document 123 of the memory: its vector holds NaN")


def test_a_row_with_nan_is_never_found_by_flat():
    rows = clustered(30)
    rows[7] = np.nan
    found = open_index(in_parts(rows, 10), IndexOptions()).search(clustered(3, seed=1), 30)[1]
    assert all(sorted(own) == [-1, *(set(range(30)) - {7})] for own in found.tolist())


def test_a_query_that_is_none():
    with pytest.raises(DataError) as error:
        open_index(VectorRows.of(clustered(30)), IndexOptions()).search(
            np.array([[1.0] * 16, [np.nan] * 16], np.float32), 3
        )
    assert tells(error.value, "query 1: its vector holds NaN")


def test_engines_take_as_many_threads_as_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threads.faiss_calls(16) as faiss:
            assert faiss.omp_get_max_threads() == threads.num_threads() == 1
    finally:
        torch.set_num_threads(before)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.num_threads() == 3


def test_batches_are_matrix_products_and_faiss_stays_as_it_was():
    """Since 1.15 faiss counts the numbers of all queries, before that queries; only the first is
    changed."""
    faiss = pytest.importorskip("faiss")
    before = faiss.cvar.distance_compute_blas_threshold
    with threads.faiss_calls(16):
        assert faiss.cvar.distance_compute_blas_threshold in (before, 8 * 16)
        assert before == 20 or faiss.cvar.distance_compute_blas_threshold == 8 * 16
    assert faiss.cvar.distance_compute_blas_threshold == before
