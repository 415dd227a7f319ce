"""Indexes that are kept beside a bank: built once, known to be those of its vectors, and left alone where they are
somebody else's."""

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

from clustered_rows import APPROXIMATE, clustered
from cm3core.errors import DataError
from cm3plugins.retrievers.dense import DenseRetrieverConfig
from cm3plugins.retrievers.index import (
    IndexOptions,
    approximate,
    faiss_engines,
    open_index,
)
from cm3run.bank import VectorRows
from messages import tells
from own_temporary import no_private_folder as no_private_folder
from own_temporary import private_folder as private_folder


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
        (lambda kept: kept.manifest(fingerprint="bank 0"), "the bank has changed"),
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
    assert f"note: rebuilding the index {kept.folder}: {reason}" in capsys.readouterr().err
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
            "is newer than its manifest, which describes another index\n"
            "  next: restore the original index, or delete the folder {folder} to "
            "rebuild it",
        ),
        (
            lambda kept: kept.manifest(format=2),
            "manifest.json",
            "has the format 2, but this version reads 1\n"
            "  next: use the cm3leon version that wrote it, or delete the folder {folder} to rebuild the "
            "index",
        ),
        (
            lambda kept: (kept.folder / "manifest.json").write_text("[1]"),
            "manifest.json",
            "is not the manifest of an index\n  next: move it away; a new index is then built in {folder}",
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


def test_where_nothing_can_be_written_it_is_built_for_this_process(kept, capsys):
    kept.root.parent.joinpath("index").write_text("a file")
    index = kept.open()
    assert index.search(kept.rows[:1], 1)[1].tolist() == [[0]]
    assert tells(
        capsys.readouterr().err,
        f"note: {kept.folder} can't be written ... building a search index for this process alone. ... keep",
    )
    kept.open()
    assert kept.num_built == 1


def test_without_a_temporary_folder_it_is_built_in_memory(kept, capsys, no_private_folder):
    kept.root.parent.joinpath("index").write_text("a file")
    index = kept.open()
    assert index.search(kept.rows[:1], 1)[1].tolist() == [[0]]
    assert tells(
        capsys.readouterr().err,
        f"... note: the index can't be stored and will be rebuilt each time: {kept.folder} can't be",
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
from cm3run.bank import VectorRows
from cm3plugins.retrievers.index import IndexOptions, faiss_engines, open_index
write = faiss_engines.FaissEngine.write
def killed(engine, native, path):
    write(engine, native, path)
    path.write_bytes(path.read_bytes()[:1000])
    os.kill(os.getpid(), signal.SIGKILL)
faiss_engines.FaissEngine.write = killed
open_index(VectorRows.of(np.load(sys.argv[1])), IndexOptions(index="ivf"), Path(sys.argv[2]), "bank 2", progress=False)
"""


@pytest.mark.slow
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
        "manifest.json",
        "vectors.index",
    ]


def test_a_build_that_fails_leaves_nothing(kept, monkeypatch):
    monkeypatch.setattr(approximate.Engine, "measured_setting", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kept.open()
    assert list(kept.folder.iterdir()) == []


def test_a_bank_keeps_its_index_beside_it(tmp_path):
    """The retriever's own way: through a memory bank."""
    from cm3lab.benchmarks.retrieval.synthetic import (
        TableEmbedder,
        Towers,
        query_documents,
        write_bank,
    )
    from cm3run.bank import MemoryBank

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
