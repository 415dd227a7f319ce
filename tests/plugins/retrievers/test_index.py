"""Vector indexes: hand-computed searches, parity with brute force, what approximate ones must keep,
files that cannot be used.

Legend: Q queries, W results a query, M rows, E dimension.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.bank import VectorRows
from cm3core.errors import DataError, RecipeError
from cm3core.testing.retriever import HashEmbedder, ListSource, RetrieverContract, example_documents
from cm3plugins.indexes import threads
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index import (
    IndexOptions,
    approximate,
    faiss_engines,
    open_index,
    opening,
)
from cm3plugins.retrievers.index.base import VectorIndex

APPROXIMATE = ("ivf", "hnsw", "pq")


def clustered(num_rows, dimension=16, seed=0):
    """Unit vectors around a few centres, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, num_rows // 50), dimension))
    rows = centres[rng.integers(0, len(centres), num_rows)] + 0.4 * rng.standard_normal(
        (num_rows, dimension)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


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
            "retriever.index: is 'hsnw'; did you mean 'hnsw'?\n  next: use one of these",
        ),
        ({"nprobe": 0}, "retriever.nprobe: is 0, must be at least 1\n  next: correct the value"),
        (
            {"num_candidates": -1},
            "retriever.num_candidates: is -1, must be at least 1\n  next: correct the value",
        ),
        (
            {"index": "flat", "nprobe": 4},
            "retriever.nprobe: is set, and the index 'flat' doesn't read it\n  next: leave it "
            "out, or use index=ivf",
        ),
        (
            {"index": "pq", "ef_search": 4},
            "retriever.ef_search: is set, and the index 'pq' doesn't read it\n  next: leave it "
            "out, or use index=hnsw",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(RecipeError) as error:
        DenseRetrieverConfig(**options).check()
    assert str(error.value) == message


def test_too_few_rows_for_pq():
    with pytest.raises(RecipeError) as error:
        open_index(VectorRows.of(clustered(255)), IndexOptions(index="pq"))
    assert str(error.value) == (
        "retriever.index: 'pq' needs 256 documents or more, the memory has 255\n"
        "  next: use index=auto, which searches so few exactly"
    )


@pytest.mark.parametrize("index", APPROXIMATE)
def test_a_vector_that_is_none(index):
    rows = clustered(300)
    rows[123, 1] = np.inf
    with pytest.raises(DataError) as error:
        open_index(in_parts(rows, 100), IndexOptions(index=index), progress=False)
    assert str(error.value) == (
        "document 123 of the memory: its vector holds NaN or infinity\n"
        "  next: remove it (cm3 memory remove), or build the bank again"
    )


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
    assert (
        str(error.value)
        == "query 1: its vector holds NaN or infinity\n  next: check the embedder's weights"
    )


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


# ---- kept beside a bank


class Kept:
    """Opens an index of 300 rows in a folder, and counts how often one is built."""

    def __init__(self, folder, monkeypatch, index="ivf"):
        self.rows, self.root, self.folder, self.index, self.num_built = (
            clustered(300),
            folder,
            folder / index,
            index,
            0,
        )
        build = faiss_engines.FaissEngine.build

        def counted(engine, progress):
            self.num_built += 1
            return build(engine, progress)

        monkeypatch.setattr(faiss_engines.FaissEngine, "build", counted)

    def open(self, fingerprint="bank 1", rows=None, **options):
        vectors = VectorRows.of(self.rows if rows is None else rows)
        return open_index(
            vectors,
            IndexOptions(index=self.index, **options),
            self.root,
            fingerprint,
            progress=False,
        )

    def manifest(self, **changes):
        path = self.folder / "manifest.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(values))
        return values


@pytest.fixture
def kept(tmp_path, monkeypatch):
    return Kept(tmp_path / "index", monkeypatch)


@pytest.mark.parametrize("index", APPROXIMATE)
def test_an_index_is_built_once(tmp_path, monkeypatch, index):
    kept = Kept(tmp_path / "index", monkeypatch, index)
    first, again = kept.open(), kept.open()
    assert kept.num_built == 1
    assert first.description == again.description
    for one, other in zip(
        first.search(kept.rows[:20], 5), again.search(kept.rows[:20], 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        "lock",
        "manifest.json",
        "vectors.index",
    ]


def test_settings_of_a_search_need_no_other_index(kept):
    assert kept.open().setting != 3
    assert kept.open(nprobe=3).setting == 3
    assert kept.open(num_candidates=7).num_candidates == 7
    assert kept.num_built == 1


def test_without_a_fingerprint_the_vectors_decide(kept):
    kept.open(None)
    kept.open(None)
    assert kept.num_built == 1
    kept.open(None, rows=np.flip(kept.rows, 0).copy())
    assert kept.num_built == 2


def test_a_copied_bank_keeps_its_index(kept, tmp_path, capsys):
    kept.open()
    shutil.copytree(kept.root, tmp_path / "copy", copy_function=shutil.copy)  # new times
    os.utime(tmp_path / "copy" / "ivf" / "vectors.index", (1, 1))
    kept.root = tmp_path / "copy"
    capsys.readouterr()
    kept.open()
    assert kept.num_built == 1
    assert capsys.readouterr().err == ""
    # hashed once
    assert json.loads((kept.root / "ivf" / "manifest.json").read_text())["modified_ns"] == 10**9


def truncate(kept):
    path = kept.folder / "vectors.index"
    path.write_bytes(path.read_bytes()[:-100])


def flip_bits(kept):
    """Bytes that changed on the disk, not by writing: the time is older than the manifest's."""
    path = kept.folder / "vectors.index"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    os.utime(path, (1, 1))


def no_index(kept):
    """A file that is as the manifest says, and that faiss can't read."""
    import hashlib

    path = kept.folder / "vectors.index"
    path.write_bytes(b"nothing")
    kept.manifest(
        num_bytes=7,
        sha256=hashlib.sha256(b"nothing").hexdigest(),
        modified_ns=path.stat().st_mtime_ns,
    )


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "its file has "),
        (flip_bits, "its file is damaged"),
        (no_index, "its file can't be read ("),
        (lambda kept: (kept.folder / "vectors.index").unlink(), "its file is missing"),
        (lambda kept: (kept.folder / "manifest.json").write_text("{"), "its manifest is damaged"),
        (lambda kept: kept.manifest(sha256=7), "its manifest is damaged"),
        (lambda kept: kept.manifest(fingerprint="bank 0"), "the bank has changed since"),
        (lambda kept: kept.manifest(built={}), "it was built with other sizes"),
    ],
    ids=["truncated", "flipped", "no index", "missing", "no JSON", "other types", "stale", "sizes"],
)
def test_what_cannot_be_used_is_built_again_with_a_note(kept, capsys, harm, reason):
    before = kept.open().search(kept.rows, 5)
    harm(kept)
    capsys.readouterr()
    after = kept.open()
    assert kept.num_built == 2
    assert f"note: the index {kept.folder} is built again: {reason}" in capsys.readouterr().err
    np.testing.assert_array_equal(after.search(kept.rows, 5)[1], before[1])
    kept.open()
    assert kept.num_built == 2


def put_another(kept):
    other = Kept.__new__(Kept)
    other.__dict__ |= kept.__dict__ | {
        "root": kept.root.parent / "other",
        "folder": kept.root.parent / "other" / "ivf",
    }
    other.open(rows=clustered(500, seed=3))
    shutil.copy(other.folder / "vectors.index", kept.folder / "vectors.index")


@pytest.mark.parametrize(
    ("harm", "file", "message"),
    [
        (
            put_another,
            "vectors.index",
            "is newer than its manifest, and not the index that this describes\n"
            "  next: put the index back that belongs there, or delete the folder {folder}: it is "
            "built again",
        ),
        (
            lambda kept: kept.manifest(format=2),
            "manifest.json",
            "has the format 2, this version reads 1\n"
            "  next: use the cm3leon that wrote it, or delete the folder {folder}: the index is "
            "built again",
        ),
        (
            lambda kept: (kept.folder / "manifest.json").write_text("[1]"),
            "manifest.json",
            "is no manifest of an index\n  next: move it away; an index is then built in {folder}",
        ),
    ],
    ids=["newer", "format", "foreign"],
)
def test_what_belongs_to_somebody_else_is_left_alone(kept, harm, file, message):
    kept.open()
    harm(kept)
    before = {path.name: path.read_bytes() for path in kept.folder.iterdir()}
    with pytest.raises(DataError) as error:
        kept.open()
    assert str(error.value) == f"{kept.folder / file}: {message.format(folder=kept.folder)}"
    assert {path.name: path.read_bytes() for path in kept.folder.iterdir()} == before


def test_where_nothing_can_be_written_it_is_built_in_memory(kept, capsys):
    kept.root.parent.joinpath("index").write_text("a file")
    index = kept.open()
    assert index.search(kept.rows[:1], 1)[1].tolist() == [[0]]
    assert (
        f"note: the index can't be kept and is built each time: {kept.folder} can't be written"
        in capsys.readouterr().err
    )


def test_processes_wait_for_each_other(kept):
    """Two at once build one index (a lock belongs to an open file, so threads stand for
    processes)."""
    workers = [threading.Thread(target=kept.open) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert kept.num_built == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from cm3core.bank import VectorRows
from cm3plugins.retrievers.index import IndexOptions, faiss_engines, open_index
write = faiss_engines.FaissEngine.write
def killed(engine, native, path):
    write(engine, native, path)
    path.write_bytes(path.read_bytes()[:1000])
    os.kill(os.getpid(), signal.SIGKILL)
faiss_engines.FaissEngine.write = killed
open_index(VectorRows.of(np.load(sys.argv[1])), IndexOptions(index="ivf"), Path(sys.argv[2]), "bank 2", progress=False)
"""


def test_a_killed_build_starts_again(kept, tmp_path):
    """Also where there was an older index: what is half written is not taken for one."""
    before = kept.open().search(kept.rows, 5)[1]
    np.save(tmp_path / "rows.npy", kept.rows)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "rows.npy"), str(kept.root)]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (kept.folder / "manifest.json").exists()
    # half of the file
    assert any(path.name.startswith(".vectors.index.") for path in kept.folder.iterdir())
    np.testing.assert_array_equal(kept.open("bank 2").search(kept.rows, 5)[1], before)
    assert kept.num_built == 2
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        "lock",
        "manifest.json",
        "vectors.index",
    ]


def test_a_build_that_fails_leaves_nothing(kept, monkeypatch):
    monkeypatch.setattr(approximate.Engine, "measured_setting", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kept.open()
    assert [path.name for path in kept.folder.iterdir()] == ["lock"]


def test_a_bank_keeps_its_index_beside_it(tmp_path):
    """The retriever's own way: through a memory bank."""
    from cm3apps.benchmarks.retrieval.synthetic import (
        TableEmbedder,
        Towers,
        query_documents,
        write_bank,
    )
    from cm3core.bank import MemoryBank

    towers = Towers(300, 16)
    write_bank(tmp_path / "bank", towers)
    bank, embedder = MemoryBank.open(tmp_path / "bank"), TableEmbedder(towers.queries(5))
    for index in ("flat", "ivf"):
        retriever = DenseRetrieverConfig(index=index).build(bank, embedder)
        found = retriever.retrieve(query_documents(5)["image"], 3)
        assert [[one.index for one in own] for own in found] == [
            [one.index for one in own]
            for own in retriever.exact().retrieve(query_documents(5)["image"], 3)
        ]
    assert (tmp_path / "bank" / "index" / "ivf" / "manifest.json").is_file()
    assert (
        json.loads((tmp_path / "bank" / "index" / "ivf" / "manifest.json").read_text())[
            "fingerprint"
        ]
        == bank.fingerprint
    )
    assert Path(bank.folder / "index" / "ivf" / "vectors.index").is_file()
