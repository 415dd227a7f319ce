"""Adding, removing, merging: the others stay as they were; what does not fit is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank_parts import QuarterTokenizer, documents, source, tools
from built_banks import built, coded, contents, files
from cm3core.errors import DataError, FileError
from cm3core.interfaces.dataset import Provenance
from cm3kits.retriever import HashEmbedder, ListSource
from cm3run.bank import MemoryBank, Shards, add_documents, build_bank, merge_banks, remove_documents
from cm3run.bank.manifest import MANIFEST
from cm3run.bank.shard import SHARDS
from cm3run.training.data_notes import counted
from messages import tells


@settings(max_examples=10)  # each writes and flushes some forty files
@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.data())
def test_adding_then_removing_changes_nothing(count, more, shard_size, data):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "bank"
        before = built(folder, count, shard_size=data.draw(st.integers(1, 5)))
        kept = contents(before)
        add_documents(folder, source(more, 50), tools(), Shards(size=shard_size), progress=False)
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
    assert tells(error.value, f"{one.folder}: and the banks ... share 6 ... 'd0' ... 'd1'")
    again = merge_banks(
        [two.folder, merged.folder], tmp_path / "more", skip_duplicates=True, progress=False
    )
    assert contents(again) == contents(two) + contents(one)


def test_the_same_ids_are_added_on_request_only(tmp_path):
    bank = built(tmp_path / "bank", 4)
    with pytest.raises(
        DataError, match=r"already has 2 of the 5 ids \('d2', 'd3'\)\n  next: skip the later"
    ):
        add_documents(bank.folder, source(5, 2), tools(), progress=False)
    report = add_documents(bank.folder, source(5, 2), tools(), skip_duplicates=True, progress=False)
    assert (report.num_added, report.num_duplicates, report.num_documents) == (3, 2, 7)
    report = add_documents(
        bank.folder, source(5, 2), tools(), Shards(id_prefix="more/"), progress=False
    )
    assert (report.num_added, MemoryBank.open(bank.folder).id(7)) == (5, "more/d2")


def test_other_tools_are_refused_with_the_reason(tmp_path):
    class Other(QuarterTokenizer):
        fingerprint = "others"

    bank = built(tmp_path / "bank")
    with pytest.raises(DataError) as error:
        bank.check_embedder(HashEmbedder(4))
    assert tells(error.value, f"{bank.folder}: was built with ... 'hash' ... DATA --model MODEL")
    with pytest.raises(DataError) as error:
        bank.check_tokenizer(Other())
    assert tells(
        error.value, f"{bank.folder}: was built with ... 'quarters' ... DATA --model MODEL"
    )
    for wrong in (tools(4), replace(tools(), image_tokenizer=Other())):
        with pytest.raises(DataError, match="was built with another"):
            add_documents(bank.folder, source(3, 50), wrong, progress=False)
    build_bank(source(3, 50), tmp_path / "other", tools(4), progress=False)
    with pytest.raises(DataError) as error:
        merge_banks([bank.folder, tmp_path / "other"], tmp_path / "both", progress=False)
    assert tells(
        error.value, f"{tmp_path / 'other'}: was built with ... 'hash' ... {bank.folder} ... 'hash'"
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
            "{place}: is not a memory bank: it has no manifest.json\n"
            "  next: name a folder that 'cm3 memory build' wrote",
        ),
        (
            lambda place: MemoryBank.open(place / "bank" / MANIFEST),
            "{place}/bank/manifest.json: is a file\n"
            "  next: name a folder that 'cm3 memory build' wrote",
        ),
        (
            lambda place: build_bank(source(3), place, tools(), progress=False),
            "{place}: contains 'bank' and is not a memory bank\n  next: name a new folder",
        ),
        (
            lambda place: build_bank(source(3), place / "new", tools(), Shards(size=0)),
            "shard_size: is 0\n  next: use 1 or more",
        ),
        (
            lambda place: remove_documents(place / "bank", ["a", "b", "c", "e"]),
            "{place}/bank: has no document with these ids ('a', 'b', 'c', ...)\n  next: give the "
            "ids under which they were added, including any prefix",
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
            "{place}/bank: already exists\n  next: name a new folder",
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


def test_a_lock_that_is_a_link_leaves_what_it_names_alone(tmp_path):
    built(tmp_path / "bank")
    precious, lock = tmp_path / "precious", tmp_path / "bank" / ".lock"
    precious.write_text("kept")
    lock.unlink(missing_ok=True)
    lock.symlink_to(precious)
    with pytest.raises(FileError, match="is a link, a folder or a device"):
        remove_documents(tmp_path / "bank", ["d1"])
    assert precious.read_text() == "kept"
    assert len(MemoryBank.open(tmp_path / "bank")) == 10


def test_a_manifest_that_is_a_link_is_not_written_through(tmp_path):
    """Whoever made the folder could otherwise have any file of ours overwritten."""
    bank = built(tmp_path / "bank")
    (bank.folder / MANIFEST).rename(tmp_path / "elsewhere.json")
    (bank.folder / MANIFEST).symlink_to("../elsewhere.json")
    before = (tmp_path / "elsewhere.json").read_bytes()
    with pytest.raises(FileError, match="is a link to a file outside of this folder"):
        remove_documents(bank.folder, ["d0"])
    assert (tmp_path / "elsewhere.json").read_bytes() == before
    assert MemoryBank.open(bank.folder).fingerprint == bank.fingerprint


LICENCES = [Provenance(), Provenance("MIT"), Provenance("CC-BY-4.0", "a site", "Ann")]


class Licensed(ListSource):
    """Documents of which each states one of `LICENCES`."""

    def provenance(self, index: int) -> Provenance:
        return LICENCES[int(self.id(index)[1:]) % 3]


def licensed(count: int, start: int = 0) -> Licensed:
    names = [f"d{start + i}" for i in range(count)]
    return Licensed(documents(count, start), names)


def test_a_bank_keeps_what_its_documents_state(tmp_path: Path) -> None:
    """Through building, adding, removing and merging; the order is that of the documents."""
    build_bank(licensed(6), tmp_path / "a", tools(), Shards(size=4), progress=False)
    add_documents(tmp_path / "a", licensed(2, 6), tools(), progress=False)
    remove_documents(tmp_path / "a", ["d0", "d5"])  # their shards are written again
    build_bank(licensed(3, 20), tmp_path / "b", tools(), progress=False)
    bank = merge_banks([tmp_path / "a", tmp_path / "b"], tmp_path / "c", progress=False)
    expected = [LICENCES[place % 3] for place in (1, 2, 3, 4, 6, 7, 20, 21, 22)]
    assert [bank.provenance(index) for index in range(len(bank))] == expected
    assert bank.verify() == []
    assert counted(bank) == [
        {"licence": "MIT", "source": "", "attribution": "", "documents": 4},
        {"licence": "unknown", "source": "", "attribution": "", "documents": 3},
        {"licence": "CC-BY-4.0", "source": "a site", "attribution": "Ann", "documents": 2},
    ]


def test_data_that_states_nothing_leaves_the_bytes_that_earlier_versions_wrote(
    tmp_path: Path,
) -> None:
    build_bank(source(3), tmp_path / "bank", tools(), progress=False)
    lines = b"".join(files(tmp_path / "bank" / SHARDS).values())
    assert b"licence" not in lines
    assert MemoryBank.open(tmp_path / "bank").provenance(0) == Provenance()


def test_a_licence_that_is_no_text_is_damage(tmp_path: Path) -> None:
    build_bank(licensed(3), tmp_path / "bank", tools(), progress=False)
    bank = MemoryBank.open(tmp_path / "bank")
    path = bank.shards[0].folder / "documents.jsonl"
    data = path.read_bytes()
    assert data.count(b'"MIT"') == 1
    path.write_bytes(data.replace(b'"MIT"', b"[1,2]"))
    with pytest.raises(DataError) as error:
        MemoryBank.open(tmp_path / "bank").provenance(1)
    assert error.value.cause == ("document 1 can't be read (licence is [1, 2], must be a text)")


# ---- what codes keep


def test_a_bank_that_was_not_measured_is_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    """The manifest's keys, and the hash by which building goes on with a bank of theirs."""
    build_bank(source(3), tmp_path / "bank", tools(), progress=False)
    values = json.loads((tmp_path / "bank" / MANIFEST).read_text())
    assert sorted(values) == [
        "built_from",
        "dimension",
        "embedder",
        "format",
        "image_tokenizer",
        "shards",
    ]
    assert values["built_from"].startswith("983b1298e96e2a1079e18c75")
    again = build_bank(
        source(3), tmp_path / "bank", replace(tools(), codes_psnr=12.5), progress=False
    )
    assert again.num_added == 0
    assert MemoryBank.open(tmp_path / "bank").manifest.codes_psnr is None


def test_what_codes_keep_stays_with_a_bank(tmp_path: Path) -> None:
    """Through adding and removing; of banks that are merged, the least."""
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, first, psnr in zip(folders, (0, 5, 10), (21.0, 12.5, None), strict=True):
        build_bank(source(5, first), folder, replace(tools(), codes_psnr=psnr), progress=False)
    add_documents(folders[0], source(2), tools(), Shards(id_prefix="more/"), progress=False)
    remove_documents(folders[0], ["d1"])
    assert MemoryBank.open(folders[0]).manifest.codes_psnr == 21.0
    merged = merge_banks(folders, tmp_path / "all", progress=False)
    assert merged.manifest.codes_psnr == 12.5
    with pytest.raises(DataError, match=r"codes_psnr: is inf\n"):
        build_bank(
            source(5), tmp_path / "new", replace(tools(), codes_psnr=float("inf")), progress=False
        )
    path = tmp_path / "all" / MANIFEST
    path.write_text(path.read_text().replace("12.5", '"x"'))
    with pytest.raises(
        DataError, match=r"is damaged \(codes_psnr is 'x', must be a number or None\)"
    ):
        MemoryBank.open(tmp_path / "all")
