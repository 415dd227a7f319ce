"""Opening a bank: damage is named, and nothing outside the folder is read."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bank_parts import QuarterTokenizer, tools
from built_banks import AGAIN, built, changed, contents, cut
from cm3core.document import Codes
from cm3core.errors import DataError, FileError
from cm3kits.retriever import HashEmbedder
from cm3run.bank import MemoryBank, Tools, remove_documents
from cm3run.bank.manifest import MANIFEST, Manifest
from cm3run.bank.shard import SHARDS, BankDocument, write_shard
from messages import tells


def edited(folder: Path, **changes) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: edited(folder, format=2),
            "manifest.json: has format 2 ... reads 1",
        ),
        (
            lambda folder: edited(folder, shards=[]),
            "bank: is a memory bank without documents",
        ),
        (
            lambda folder: edited(folder, dimension="8"),
            f"manifest.json: is damaged (dimension is '8' ... )\n  next: {AGAIN}",
        ),
        (
            lambda folder: edited(folder, shards=[{}]),
            f"manifest.json: is damaged (shards[0] has no ... )\n  next: {AGAIN}",
        ),
        (
            lambda folder: (folder / MANIFEST).write_text("[]"),
            f"manifest.json: is not a memory bank's manifest (is [] ... )\n  next: {AGAIN}",
        ),
        (
            lambda folder: (folder / MANIFEST).write_text('{"format": 1'),
            "manifest.json: is not a memory bank's manifest (is not JSON: Expecting ',' delimiter",
        ),
    ],
)
def test_a_damaged_manifest_says_so(tmp_path, damage, message):
    built(tmp_path / "bank")
    damage(tmp_path / "bank")
    with pytest.raises(DataError) as error:
        MemoryBank.open(tmp_path / "bank")
    assert tells(error.value, f"... {message}")


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
        (
            lambda shard: changed(shard / "vectors.npy", 0, b"x"),
            r"vectors\.npy: is not an array \(",
        ),
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
    bank = built(tmp_path / "a bank")
    kept = contents(bank)
    damage(bank.shards[1].folder)
    with pytest.raises(DataError, match=message) as error:
        MemoryBank.open(bank.folder)
    assert error.value.place.startswith(str(bank.shards[1].folder))
    assert tells(
        error.value.next_step,
        "copy the bank again from its source, or drop the damaged shards: cm3 memory remove",
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
        assert tells(error.value, f"{bank.folder}: has only damaged shards")


def test_bits_that_flip_are_found_by_verifying_or_reading(tmp_path):
    bank = built(tmp_path / "bank")
    codes = bank.shards[0].folder / "codes.npy"
    changed(codes, codes.stat().st_size - 1, b"\xff")
    opened = MemoryBank.open(bank.folder)
    [error] = opened.verify()
    assert tells(error, f"{codes}: does not match its recorded SHA")
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
    with pytest.raises(DataError, match=r"is damaged \(.*vectors\.npy.*, must be a SHA-256\)"):
        MemoryBank.open(bank.folder)


def test_many_documents_are_opened_without_reading_them(tmp_path, monkeypatch):
    """Vectors of a large bank are not looked through when it is opened, but when it is verified."""
    import cm3run.bank.memory_bank as module

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


def test_a_manifest_that_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    """The system's refusal is pretended: root is refused nothing."""
    built(tmp_path / "bank", 2)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("cm3run.bank.manifest.read_text", refused)
    with pytest.raises(FileError) as raised:
        MemoryBank.open(tmp_path / "bank")
    assert tells(
        raised.value, f"{tmp_path}/bank/manifest.json: can't be read now (Permission denied)"
    )
