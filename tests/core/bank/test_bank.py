"""Memory banks: what is built is what is read, whatever is added, removed, merged, killed or
damaged."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_parts import QuarterTokenizer, documents, picture, source, tools
from cm3core.bank import (
    MemoryBank,
    Tools,
    VectorRows,
    add_documents,
    build_bank,
    merge_banks,
    remove_documents,
)
from cm3core.bank.manifest import MANIFEST, Manifest
from cm3core.bank.shard import SHARDS, BankDocument, write_shard
from cm3core.bank.writing import writing
from cm3core.document import Codes, Image, ImageHole, Text, content_keys
from cm3core.errors import DataError, FileError
from cm3core.images import fit
from cm3core.testing.dataset import DocumentSourceContract
from cm3core.testing.retriever import HashEmbedder, ListSource

SCRIPT = Path(__file__).parents[2] / "fixtures" / "bank" / "kill_and_resume.py"
AGAIN = "copy the bank again from where it came, or build it anew: cm3 memory build"


def built(folder: Path, count: int = 10, start: int = 0, shard_size: int = 4) -> MemoryBank:
    build_bank(source(count, start), folder, tools(), shard_size=shard_size, progress=False)
    return MemoryBank.open(folder)


def coded(document):
    """The document as a bank keeps it, by an independent path."""
    tokenizer = QuarterTokenizer()
    return tuple(
        Codes(tokenizer.encode(fit(part.load(), (4, 4))[None])[0], (2, 2))
        if isinstance(part, Image)
        else part
        for part in document
    )


def contents(bank: MemoryBank) -> list:
    return [
        (bank.id(i), bank.document(i), bank.content_keys(i), bank.vectors.row(i).tobytes())
        for i in range(len(bank))
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- rows of several arrays


def test_rows_by_hand():
    rows = VectorRows(
        [
            np.array([[0, 1]], np.float32),
            np.zeros((0, 2), np.float32),
            np.array([[2, 3], [4, 5]], np.float32),
        ]
    )
    assert (rows.shape, len(rows)) == ((3, 2), 3)
    assert rows.take([2, 0, 2]).tolist() == [[4, 5], [0, 1], [4, 5]]
    assert [(start, block.tolist()) for start, block in rows.blocks(1)] == [
        (0, [[0, 1]]),
        (1, [[2, 3]]),
        (2, [[4, 5]]),
    ]
    assert rows.row(1).base is not None
    assert VectorRows([], 7).shape == (0, 7)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_rows_are_those_of_one_array(lengths, max_rows, data):
    whole = np.random.default_rng(0).standard_normal((sum(lengths), 3)).astype(np.float32)
    rows = VectorRows(np.split(whole, np.cumsum(lengths)[:-1]))
    indices = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)) if len(whole) else []
    assert np.array_equal(rows.take(indices), whole[np.array(indices, int)])
    blocks = list(rows.blocks(max_rows))
    assert [start for start, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks)])[
        :-1
    ].tolist()
    assert np.array_equal(np.concatenate([*(block for _, block in blocks), whole[:0]]), whole)
    assert all(len(block) <= max_rows for _, block in blocks)
    assert all(np.array_equal(rows.row(i), whole[i]) for i in range(len(whole)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: rows.take([0, 3]), "row 3: there are 2"),
        (lambda rows: rows.row(-1), "row -1: there are 2"),
        (lambda rows: list(rows.blocks(0)), "max_rows: is 0, not 1 or more"),
        (lambda rows: VectorRows([]), "parts: there is none; give the dimension"),
        (
            lambda rows: VectorRows([np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float32)]),
            "part 1: is float32 [2, 2], not float32 [m, 3]",
        ),
        (
            lambda rows: VectorRows.of(np.zeros((2, 3))),
            "part 0: is float64 [2, 3], not float32 [m, 3]",
        ),
    ],
)
def test_wrong_rows_are_refused(call, message):
    with pytest.raises((ValueError, IndexError)) as error:
        call(VectorRows.of(np.zeros((2, 3), np.float32)))
    assert str(error.value) == message


# ---- building


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return built(tmp_path_factory.mktemp("bank") / "bank").folder


class TestBankIsASource(DocumentSourceContract):
    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _folder(cls, folder):
        cls.folder = folder

    def make(self):
        return MemoryBank.open(self.folder)


def test_a_bank_holds_texts_codes_ids_keys_and_vectors(folder):
    bank, given_documents = MemoryBank.open(folder), documents(10)
    assert [bank.id(i) for i in range(len(bank))] == [f"d{i}" for i in range(10)]
    assert [bank.document(i) for i in range(10)] == [
        coded(document) for document in given_documents
    ]
    for i, document in enumerate(given_documents):
        assert bank.content_keys(i) == content_keys(document) | content_keys(coded(document))
    embedded = HashEmbedder().embed_documents(given_documents)
    assert bank.vectors.shape == (10, 8)
    assert np.allclose(bank.vectors.take(range(10)), embedded, atol=1e-6)
    assert bank.has_text.tolist() == [i % 4 != 2 for i in range(10)]
    assert bank.has_image.tolist() == [i % 4 != 1 for i in range(10)]
    assert [len(shard) for shard in bank.shards] == [4, 4, 2]
    assert bank.find(["d7", "nobody", "d0"]) == {"d7": 7, "d0": 0}
    assert bank.manifest.num_documents == 10
    assert (bank.manifest.embedder.name, bank.manifest.embedder.config) == (
        "hash",
        {"dimension": 8},
    )
    assert (bank.manifest.image_tokenizer.grid, bank.manifest.image_tokenizer.codebook_size) == (
        (2, 2),
        16,
    )
    assert (folder / "image_tokenizer" / "levels.txt").read_text() == "16\n"
    assert bank.verify() == []
    assert isinstance(bank.vectors.parts[0], np.memmap)


def test_content_keys_by_hand():
    assert content_keys((Text("a"), picture(3))) == {"image:p3"}
    one, other = content_keys((Text(" Red\n apple"),)), content_keys((Text("red"), Text("APPLE")))
    assert one == other == {"text:" + "".join(one)[5:]}
    assert len("".join(one)) == 5 + 32
    flat, tall = (Codes(np.arange(4, dtype=np.int32), grid) for grid in ((2, 2), (4, 1)))
    assert content_keys((flat,)) != content_keys((tall,))
    assert content_keys((replace(flat, missing=np.ones(4, bool)),)) == content_keys((flat,))
    assert content_keys((ImageHole(),)) == frozenset()


def test_building_again_does_nothing_and_other_data_is_refused(tmp_path):
    first = built(tmp_path / "bank")
    before = files(tmp_path / "bank")
    report = build_bank(source(10), tmp_path / "bank", tools(), shard_size=4, progress=False)
    assert (report.num_added, report.num_documents) == (0, 10)
    assert files(tmp_path / "bank") == before
    with pytest.raises(DataError) as error:
        build_bank(source(11), tmp_path / "bank", tools(), shard_size=4, progress=False)
    assert str(error.value) == (
        f"{tmp_path / 'bank'}: holds a memory bank of 10 documents, built of other data or "
        "otherwise, or changed since\n  next: name a new folder, or add to this one: cm3 memory add"
    )
    assert MemoryBank.open(tmp_path / "bank").fingerprint == first.fingerprint


def test_building_again_mends_what_is_damaged(tmp_path, capsys):
    bank = built(tmp_path / "bank")
    before, kept = files(bank.folder), contents(bank)
    shutil.rmtree(bank.shards[0].folder)
    cut(bank.shards[2].folder / "codes.npy")
    assert contents(built(bank.folder)) == kept
    assert files(bank.folder) == before
    assert re.fullmatch(
        r"note: .*/vectors\.npy: can't be read \(No such file or directory\) \(and 1 more of its "
        r"3 shards are "
        r"damaged\); the bank is built again\n",
        capsys.readouterr().err,
    )


def test_what_cannot_be_used_is_left_out_and_told(tmp_path):
    def broken():
        raise DataError("cat.png", "is truncated", "replace it")

    class Odd(HashEmbedder):
        def embed_documents(self, given_documents):
            vectors = super().embed_documents(given_documents)
            vectors[[document == (Text("nan"),) for document in given_documents]] = np.nan
            return vectors

    odd = [
        *documents(3),
        (Text("a"), Image("cat", broken)),
        (Text("nan"),),
        (),
        *documents(2, 3),
        (Text("x"), ImageHole()),
    ]
    report = build_bank(
        ListSource(odd),
        tmp_path / "bank",
        replace(tools(), embedder=Odd()),
        shard_size=4,
        progress=False,
    )
    assert [(record.place, record.cause) for record in report.skipped] == [
        ("cat.png", "is truncated"),
        ("document d5", "has neither text nor a picture"),
        ("document d4", "the embedder gives it a vector of length nan, not 1"),
        ("document d8", "holds ImageHole; a bank is built of texts and pictures"),
    ]
    bank = MemoryBank.open(tmp_path / "bank")
    assert [bank.id(i) for i in range(len(bank))] == ["d0", "d1", "d2", "d6", "d7"]
    assert [bank.document(i) for i in range(5)] == [coded(document) for document in documents(5)]


def test_nothing_usable_is_an_error_and_leaves_no_bank(tmp_path):
    with pytest.raises(DataError) as error:
        build_bank(ListSource([(Text(" "),)]), tmp_path / "bank", tools(), progress=False)
    assert str(error.value) == (
        "the data set: has no document that can be used (1 are skipped; the first is document "
        "d0: has "
        "neither text nor a picture)\n  next: run 'cm3 data validate' to see why"
    )
    assert not (tmp_path / "bank" / MANIFEST).exists()
    assert built(tmp_path / "bank").verify() == []


def test_a_full_disk_is_told_and_costs_a_shard(tmp_path, monkeypatch):
    import errno

    plain, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError) as error:
        built(tmp_path / "bank")
    assert str(error.value) == (
        f"{tmp_path / 'bank'}: can't be written (No space left on device); what is in it stays "
        "as it was\n"
        "  next: free space on that disk, then give the same command again: it goes on where it "
        "stopped"
    )
    assert not list((tmp_path / "bank" / SHARDS).glob(".*"))
    monkeypatch.setattr(os, "fsync", plain)
    assert built(tmp_path / "bank").verify() == []


# ---- killed


def test_sigkill_at_any_moment(tmp_path):
    """Real processes, really killed: the same bytes in the end, and after each kill the old bank or
    the new one."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["status"] == [0, 0, 0, 0], done.stderr
    assert sum(map(len, report["kills"].values())) >= 6, report
    assert len(report["kills"]["build"]) >= 3, report
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert files(whole) == files(killed)
    states, kills = report["states"], report["kills"]
    assert set(kills["build"]) <= {
        "is a memory bank whose building was cut off",
        "does not exist",
        "is no memory bank: it holds no manifest.json",
        states["build"],
    }
    for step, before in (("add", "build"), ("remove", "add")):
        assert set(kills[step]) <= {states[before], states[step]}
    assert set(kills["merge"]) <= {"does not exist", states["merge"]}


def test_a_build_cut_off_goes_on(tmp_path, monkeypatch):
    """What was finished is not computed again, and what its folder lost is."""
    seen: list[str] = []

    class Counting(ListSource):
        def _document(self, index, rng):
            seen.append(self.id(index))
            return super()._document(index, rng)

    class Stops(HashEmbedder):
        def embed_documents(self, given_documents):
            if given_documents[0] == documents(9)[8]:
                raise KeyboardInterrupt
            return super().embed_documents(given_documents)

    with pytest.raises(KeyboardInterrupt):
        build_bank(
            Counting(documents(10)),
            tmp_path / "bank",
            replace(tools(), embedder=Stops()),
            shard_size=4,
            progress=False,
        )
    with pytest.raises(DataError) as error:
        MemoryBank.open(tmp_path / "bank")
    assert str(error.value) == (
        f"{tmp_path / 'bank'}: is a memory bank whose building was cut off\n"
        "  next: give the same 'cm3 memory build' again: it goes on where it stopped"
    )
    shards = sorted((tmp_path / "bank" / SHARDS).iterdir())
    assert len(shards) == 2
    shutil.rmtree(shards[0])
    seen.clear()
    build_bank(Counting(documents(10)), tmp_path / "bank", tools(), shard_size=4, progress=False)
    assert len(seen) == 10 + 4 + 2  # for the fingerprint, the lost shard, the last one
    built(tmp_path / "whole")
    assert files(tmp_path / "bank") == files(tmp_path / "whole")


def test_other_data_begins_anew(tmp_path, capsys):
    class Stops(HashEmbedder):
        def embed_documents(self, given_documents):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bank(
            source(9),
            tmp_path / "bank",
            replace(tools(), embedder=Stops()),
            shard_size=4,
            progress=False,
        )
    built(tmp_path / "bank")
    assert (
        "note: data or settings are others than when building was cut off; it begins anew"
        in capsys.readouterr().err
    )


def test_two_at_once_are_refused(tmp_path):
    built(tmp_path / "bank")
    with writing(tmp_path / "bank"), pytest.raises(DataError) as error:
        remove_documents(tmp_path / "bank", ["d0"])
    assert str(error.value) == (
        f"{tmp_path / 'bank'}: another process is changing this memory bank\n"
        "  next: wait until it is done"
    )


# ---- add, remove, merge


@settings(max_examples=10)  # each writes and flushes some forty files
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.data())
def test_adding_then_removing_changes_nothing(count, more, shard_size, data):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        before = built(folder, count, shard_size=data.draw(st.integers(1, 5)))
        kept = contents(before)
        add_documents(folder, source(more, 50), tools(), shard_size=shard_size, progress=False)
        grown = MemoryBank.open(folder)
        assert contents(grown)[:count] == kept
        assert [grown.document(count + i) for i in range(more)] == [
            coded(document) for document in documents(more, 50)
        ]
        report = remove_documents(folder, [f"d{50 + i}" for i in range(more)])
        assert (report.num_removed, report.missing, report.num_documents) == (more, [], count)
        after = MemoryBank.open(folder)
        assert after.fingerprint == before.fingerprint
        assert contents(after) == kept
        assert contents(before) == kept, "who had it open goes on reading"


@settings(max_examples=10)
@given(st.sets(st.integers(0, 9), min_size=1, max_size=9))
def test_removed_documents_are_gone_and_the_others_stay_as_they_were(removed):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        kept = [one for i, one in enumerate(contents(built(folder))) if i not in removed]
        remove_documents(folder, [f"d{i}" for i in removed])
        bank = MemoryBank.open(folder)
        assert contents(bank) == kept
        assert bank.verify() == []
        assert [bank.vectors.row(i).tobytes() for i in range(len(bank))] == [
            vector for *_, vector in kept
        ]
        left = b"".join(files(folder / SHARDS).values())
        assert not any(f'"d{i}"'.encode() in left for i in removed)


def test_merging_is_building_of_both(tmp_path):
    one, two = built(tmp_path / "one", 6), built(tmp_path / "two", 5, 6)
    merged = merge_banks([one.folder, two.folder], tmp_path / "both", progress=False)
    assert contents(merged) == contents(one) + contents(two)
    assert merged.verify() == []
    assert (tmp_path / "both" / "image_tokenizer" / "levels.txt").is_file()
    with pytest.raises(DataError) as error:
        merge_banks([one.folder, merged.folder], tmp_path / "more", progress=False)
    assert str(error.value) == (
        f"{one.folder}: and the banks behind it share 6 ids ('d0', 'd1', 'd2', ...)\n"
        "  next: leave the later documents of these ids out (--skip-duplicates), remove the "
        "earlier ones (cm3 memory remove), or "
        "give the new ones other ids (cm3 memory add --id-prefix)"
    )
    again = merge_banks(
        [two.folder, merged.folder], tmp_path / "more", skip_duplicates=True, progress=False
    )
    assert contents(again) == contents(two) + contents(one)


def test_the_same_ids_are_added_on_request_only(tmp_path):
    bank = built(tmp_path / "bank", 4)
    with pytest.raises(
        DataError, match=r"has 2 of the 5 ids already \('d2', 'd3'\)\n  next: leave the later"
    ):
        add_documents(bank.folder, source(5, 2), tools(), progress=False)
    report = add_documents(bank.folder, source(5, 2), tools(), skip_duplicates=True, progress=False)
    assert (report.num_added, report.num_duplicates, report.num_documents) == (3, 2, 7)
    report = add_documents(bank.folder, source(5, 2), tools(), id_prefix="more/", progress=False)
    assert (report.num_added, MemoryBank.open(bank.folder).id(7)) == (5, "more/d2")


# ---- what can't be


def test_other_tools_are_refused_with_the_reason(tmp_path):
    class Other(QuarterTokenizer):
        fingerprint = "others"

    bank = built(tmp_path / "bank")
    with pytest.raises(DataError) as error:
        bank.check_embedder(HashEmbedder(4))
    assert str(error.value) == (
        f"{bank.folder}: was built with another embedder ('hash', fingerprint hash-8; the one "
        "here has hash-4)\n"
        "  next: use the embedder that it was built with, or build a bank with this one: cm3 "
        "memory build"
    )
    with pytest.raises(DataError) as error:
        bank.check_tokenizer(Other())
    assert str(error.value) == (
        f"{bank.folder}: was built with another image tokenizer ('quarters', fingerprint "
        "quarters; the one here has others)\n"
        "  next: use the image tokenizer that it was built with, or build a bank with this one: "
        "cm3 memory build"
    )
    for wrong in (tools(4), replace(tools(), image_tokenizer=Other())):
        with pytest.raises(DataError, match="was built with another"):
            add_documents(bank.folder, source(3, 50), wrong, progress=False)
    build_bank(source(3, 50), tmp_path / "other", tools(4), progress=False)
    with pytest.raises(DataError) as error:
        merge_banks([bank.folder, tmp_path / "other"], tmp_path / "both", progress=False)
    assert str(error.value) == (
        f"{tmp_path / 'other'}: was built with another embedder ('hash', fingerprint hash-4) "
        f"than {bank.folder} "
        "('hash', hash-8)\n"
        "  next: build one of them anew with the other's: cm3 memory build"
    )
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda place: MemoryBank.open(place / "none"),
            "{place}/none: does not exist\n  next: name a folder that 'cm3 memory build' wrote",
        ),
        (
            lambda place: MemoryBank.open(place),
            "{place}: is no memory bank: it holds no manifest.json\n"
            "  next: name a folder that 'cm3 memory build' wrote",
        ),
        (
            lambda place: MemoryBank.open(place / "bank" / MANIFEST),
            "{place}/bank/manifest.json: is a file\n"
            "  next: name a folder that 'cm3 memory build' wrote",
        ),
        (
            lambda place: build_bank(source(3), place, tools(), progress=False),
            "{place}: holds 'bank' and is no memory bank\n  next: name a new folder",
        ),
        (
            lambda place: build_bank(source(3), place / "new", tools(), shard_size=0),
            "shard_size: is 0\n  next: use 1 or more",
        ),
        (
            lambda place: remove_documents(place / "bank", ["a", "b", "c", "e"]),
            "{place}/bank: has no document of these ids ('a', 'b', 'c', ...)\n  next: give ids "
            "as they were added, prefix included",
        ),
        (
            lambda place: remove_documents(place / "bank", [f"d{i}" for i in range(10)]),
            "{place}/bank: would have no document left\n  next: delete the folder instead",
        ),
        (
            lambda place: merge_banks([place / "bank"], place / "new"),
            "cm3 memory merge: was given 1 banks\n  next: name two or more",
        ),
        (
            lambda place: merge_banks([place / "bank"] * 2, place / "bank"),
            "{place}/bank: is there already\n  next: name a new folder",
        ),
        (
            lambda place: MemoryBank.open(place / "bank").document(10),
            "document 10: the data set has 10\n  next: use 0..9",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, call, message):
    built(tmp_path / "bank")
    with pytest.raises(DataError) as error:
        call(tmp_path)
    assert str(error.value) == message.replace("{place}", str(tmp_path))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / ".lock").exists()


def edited(folder: Path, **changes) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edited(folder, format=2),
            "manifest.json: has format 2, this version reads 1\n  next: use a newer cm3leon",
        ),
        (
            lambda folder: edited(folder, shards=[]),
            "bank: is a memory bank without documents\n  next: build it anew: cm3 memory build",
        ),
        (
            lambda folder: edited(folder, dimension="8"),
            f"manifest.json: is damaged (dimension is '8')\n  next: {AGAIN}",
        ),
        (
            lambda folder: edited(folder, shards=[{}]),
            f"manifest.json: is damaged ('files')\n  next: {AGAIN}",
        ),
        (
            lambda folder: (folder / MANIFEST).write_text("[]"),
            f"manifest.json: is no manifest of a memory bank\n  next: {AGAIN}",
        ),
        (
            lambda folder: (folder / MANIFEST).write_text('{"format": 1'),
            "manifest.json: can't be read (Expecting ',' delimiter",
        ),
    ],
)
def test_a_damaged_manifest_says_so(tmp_path, damage, message):
    built(tmp_path / "bank")
    damage(tmp_path / "bank")
    with pytest.raises(DataError) as error:
        MemoryBank.open(tmp_path / "bank")
    assert message in str(error.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def changed(path: Path, offset: int, new: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(new)] = new
    path.write_bytes(content)


NAN = np.array([np.nan], np.float32).tobytes()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: cut(shard / "codes.npy"), r"codes\.npy: has \d+ bytes, not \d+\n"),
        (
            lambda shard: (shard / "documents.jsonl").unlink(),
            r"documents\.jsonl: can't be read \(No such file or directory\)\n",
        ),
        (
            lambda shard: shutil.rmtree(shard),
            r"vectors\.npy: can't be read \(No such file or directory\)\n",
        ),
        (lambda shard: changed(shard / "vectors.npy", 0, b"x"), r"vectors\.npy: is no array \("),
        (
            lambda shard: changed(
                shard / "vectors.npy",
                (shard / "vectors.npy").read_bytes().index(b"(4, 8)"),
                b"(8, 4)",
            ),
            r"vectors\.npy: is float32 \[8, 4\], not float32 \[4, 8\]\n",
        ),
        (
            lambda shard: changed(shard / "vectors.npy", 128 + 32, NAN),
            r"vectors\.npy: the vector of document 1 has length nan, not 1\n",
        ),
    ],
)
def test_a_damaged_shard_is_named_and_the_others_can_be_used(tmp_path, damage, message):
    bank = built(tmp_path / "bank")
    kept = contents(bank)
    damage(bank.shards[1].folder)
    with pytest.raises(DataError, match=message) as error:
        MemoryBank.open(bank.folder)
    assert error.value.place.startswith(str(bank.shards[1].folder))
    assert error.value.next_step == (
        "copy the bank again from where it came, or leave the damaged shards out: "
        f"cm3 memory remove {bank.folder} --damaged"
    )
    rest = MemoryBank.open(bank.folder, skip_damaged=True)
    assert contents(rest) == kept[:4] + kept[8:]
    assert [record.cause for record in rest.skipped] == [error.value.cause]
    assert len(rest.verify()) == 1
    report = remove_documents(bank.folder, [], damaged=True)
    assert (report.num_removed, report.num_damaged_shards, report.num_documents) == (0, 1, 6)
    assert contents(MemoryBank.open(bank.folder)) == kept[:4] + kept[8:]


def test_a_bank_that_changes_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    """The manifest was read, and then the shards that it names were replaced."""
    old = built(tmp_path / "bank").manifest
    remove_documents(tmp_path / "bank", ["d5"])
    new, answers = Manifest.read(tmp_path / "bank"), [old]
    monkeypatch.setattr(Manifest, "read", lambda folder: answers.pop() if answers else new)
    assert len(MemoryBank.open(tmp_path / "bank")) == 9


def test_several_damaged_shards_are_counted(tmp_path):
    bank = built(tmp_path / "bank")
    for shard in bank.shards[:2]:
        cut(shard.folder / "codes.npy")
    with pytest.raises(
        DataError, match=r"bytes, not \d+ \(and 1 more of its 3 shards are damaged\)\n"
    ):
        MemoryBank.open(bank.folder)
    shutil.rmtree(bank.folder / SHARDS)
    for call in (
        lambda: MemoryBank.open(bank.folder, skip_damaged=True),
        lambda: remove_documents(bank.folder, [], damaged=True),
    ):
        with pytest.raises(DataError) as error:
            call()
        assert (
            str(error.value)
            == f"{bank.folder}: has damaged shards only\n  next: build it anew: cm3 memory build"
        )


def test_bits_that_flip_are_found_by_verifying_or_reading(tmp_path):
    bank = built(tmp_path / "bank")
    codes = bank.shards[0].folder / "codes.npy"
    changed(codes, codes.stat().st_size - 1, b"\xff")
    opened = MemoryBank.open(bank.folder)
    [error] = opened.verify()
    assert str(error).startswith(
        f"{codes}: is not what was written: its SHA-256 is another one\n  next: copy the bank again"
    )
    with pytest.raises(
        DataError,
        match=r"codes\.npy: picture 3 has codes \d+\.\.65\d+, the codebook has 16 entries",
    ):
        [opened.document(i) for i in range(4)]
    lines = bank.shards[2].folder / "documents.jsonl"
    changed(lines, 3, b"\xff")
    with pytest.raises(DataError, match=r"documents\.jsonl: document 0 can't be read"):
        MemoryBank.open(bank.folder).document(8)


def test_a_name_in_the_manifest_leads_nowhere_else(tmp_path):
    """Shards' folders are named by the hashes of their files, never by what a manifest says."""
    bank = built(tmp_path / "bank")
    values = json.loads((bank.folder / MANIFEST).read_text())
    values["shards"][0]["files"]["vectors.npy"]["sha256"] = "../" * 20
    (bank.folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"is damaged \(vectors\.npy: '\.\./.*' is no SHA-256\)"):
        MemoryBank.open(bank.folder)


def test_many_documents_are_opened_without_reading_them(tmp_path, monkeypatch):
    """Vectors of a large bank are not looked through when it is opened, but when it is verified."""
    import cm3core.bank.memory_bank as module

    monkeypatch.setattr(module, "CHECKED_BYTES", 100)
    bank = built(tmp_path / "bank")
    changed(bank.shards[0].folder / "vectors.npy", 128, NAN)
    opened = MemoryBank.open(bank.folder)
    assert len(opened) == 10
    assert len(opened.verify()) == 1


def test_a_shard_is_written_as_given(tmp_path):
    vector = np.eye(8, dtype=np.float32)[2]
    manifest: Manifest = tools().manifest
    big = Tools(
        HashEmbedder(8), type("Big", (QuarterTokenizer,), {"codebook_size": 1 << 17})()
    ).manifest
    one = BankDocument(
        "a", (Codes(np.array([0, 1, 2, 100_000], np.int32), (2, 2)),), frozenset({"k"}), vector
    )
    assert write_shard(tmp_path, [], manifest) is None
    info = write_shard(tmp_path, [one], big)
    big.with_shards((info,)).write(tmp_path)
    bank = MemoryBank.open(tmp_path)
    assert bank.document(0)[0].codes.tolist() == [0, 1, 2, 100_000]
    assert bank.content_keys(0) == {"k"}
    assert bank.vectors.row(0).tolist() == vector.tolist()
