"""Building: what is built is what is read, whatever is killed or can't be used."""

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

from bank_parts import documents, picture, source, tools
from built_banks import built, coded, contents, cut, files
from cm3core.document import Codes, Image, ImageHole, Text, content_keys
from cm3core.errors import DataError, FileError
from cm3kits.dataset import DocumentSourceContract
from cm3kits.retriever import HashEmbedder, ListSource
from cm3run.bank import MemoryBank, Shards, build_bank, remove_documents
from cm3run.bank.manifest import MANIFEST
from cm3run.bank.shard import SHARDS
from cm3run.bank.writing import writing
from messages import tells

SCRIPT = Path(__file__).parents[2] / "fixtures" / "bank" / "kill_and_resume.py"


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
    assert not bank.vectors.parts[0].flags.owndata
    assert str(bank.shards[0].folder / "vectors.npy") in Path("/proc/self/maps").read_text()


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
    report = build_bank(source(10), tmp_path / "bank", tools(), Shards(size=4), progress=False)
    assert (report.num_added, report.num_documents) == (0, 10)
    assert files(tmp_path / "bank") == before
    with pytest.raises(DataError) as error:
        build_bank(source(11), tmp_path / "bank", tools(), Shards(size=4), progress=False)
    assert tells(error.value, f"{tmp_path / 'bank'}: already has a memory ... of 10")
    assert MemoryBank.open(tmp_path / "bank").fingerprint == first.fingerprint


def test_building_again_mends_what_is_damaged(tmp_path, capsys):
    """A file that was changed since it was written might be somebody's own: its shard is kept under another name."""
    bank = built(tmp_path / "bank")
    before, kept = files(bank.folder), contents(bank)
    shutil.rmtree(bank.shards[0].folder)
    cut(bank.shards[2].folder / "codes.npy")
    assert contents(built(bank.folder)) == kept
    aside = bank.shards[2].folder.with_name(f"{bank.shards[2].folder.name}-1")
    assert aside.is_dir()
    shutil.rmtree(aside)
    assert files(bank.folder) == before
    assert re.match(
        r"note: .*/vectors\.npy: can't be read \(No such file or directory\) \(and 1 more of its "
        r"3 shards are "
        r"damaged\); rebuilding the bank\n",
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
        Shards(size=4),
        progress=False,
    )
    assert [(record.place, record.cause) for record in report.skipped] == [
        ("cat.png", "is truncated"),
        ("document d5", "has neither text nor a picture"),
        ("document d4", "the embedder gives it a vector of length nan, not 1"),
        ("document d8", "contains ImageHole, but banks are built from texts and pictures"),
    ]
    bank = MemoryBank.open(tmp_path / "bank")
    assert [bank.id(i) for i in range(len(bank))] == ["d0", "d1", "d2", "d6", "d7"]
    assert [bank.document(i) for i in range(5)] == [coded(document) for document in documents(5)]


def test_what_is_withheld_is_not_in_a_bank(tmp_path):
    class WithALogo(ListSource):
        def is_withheld(self, index):
            return index == 1

    given = WithALogo(documents(3))
    report = build_bank(given, tmp_path / "bank", tools(), progress=False)
    bank = MemoryBank.open(tmp_path / "bank")
    assert [bank.id(index) for index in range(len(bank))] == ["d0", "d2"]
    [skipped] = report.skipped
    assert (skipped.place, "withheld by its data set" in skipped.cause) == ("document d1", True)


def test_nothing_usable_is_an_error_and_leaves_no_bank(tmp_path):
    with pytest.raises(DataError) as error:
        build_bank(ListSource([(Text(" "),)]), tmp_path / "bank", tools(), progress=False)
    assert tells(error.value, "the data set: has no usable document ... 1 ... 'cm3 data validate'")
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
    assert tells(error.value, f"{tmp_path / 'bank'}: can't be written (No space left")
    assert not list((tmp_path / "bank" / SHARDS).glob(".*"))
    monkeypatch.setattr(os, "fsync", plain)
    assert built(tmp_path / "bank").verify() == []


@pytest.mark.slow
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
        "is a memory bank whose build was interrupted",
        "does not exist",
        "is not a memory bank: it has no manifest.json",
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
            Shards(size=4),
            progress=False,
        )
    with pytest.raises(DataError) as error:
        MemoryBank.open(tmp_path / "bank")
    assert tells(
        error.value, f"{tmp_path / 'bank'}: is a memory bank whose build ... 'cm3 memory build'"
    )
    shards = sorted((tmp_path / "bank" / SHARDS).iterdir())
    assert len(shards) == 2
    shutil.rmtree(shards[0])
    seen.clear()
    build_bank(Counting(documents(10)), tmp_path / "bank", tools(), Shards(size=4), progress=False)
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
            Shards(size=4),
            progress=False,
        )
    built(tmp_path / "bank")
    assert tells(capsys.readouterr().err, "... note: data or settings have changed since")


def test_two_at_once_are_refused(tmp_path):
    built(tmp_path / "bank")
    with writing(tmp_path / "bank"), pytest.raises(DataError) as error:
        remove_documents(tmp_path / "bank", ["d0"])
    assert tells(error.value, f"{tmp_path / 'bank'}: another process is changing this memory")
