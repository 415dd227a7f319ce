"""What is written on a disk that is really full: an error that says so, nothing half, and the same command
goes on once there is room."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bank_parts import source, tools
from built_banks import built, contents
from cm3apps.cli.main import main
from cm3core.errors import FileError
from cm3core.files import atomic_path
from cm3run.bank import MemoryBank, Shards, add_documents, merge_banks, remove_documents
from cm3run.npy import load_array, save_array
from cm3run.progress import make_bar
from cm3run.training.code_cache import sharded_rows
from messages import tells
from own_temporary import no_private_folder as no_private_folder
from own_temporary import private_folder as private_folder
from small_disk import leave_room, small_disk
from squares import PARTS

PAGE_KIB = 4


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "lock")
    }


def full(path: Path) -> str:
    return f"{path}: can't be written (No space left on device)\n  next: free space on that disk"


def test_an_array_is_written_whole_or_refused(tmp_path: Path) -> None:
    """numpy's own writer loses the last bytes of some of these without a word."""
    refused = 0
    with small_disk(tmp_path / "disk") as disk:
        for pages in range(5):
            for size in (100, 3968, 4000, 8000, 12_160, 12_200, 16_300):
                array = np.arange(size, dtype=np.uint8)
                path = disk / "a.npy"
                path.unlink(missing_ok=True)
                leave_room(disk, pages * PAGE_KIB)
                if 128 + size <= pages * 4096:
                    save_array(path, array)
                    np.testing.assert_array_equal(load_array(path), array)
                else:
                    refused += 1
                    with pytest.raises(OSError, match="No space left on device"):
                        save_array(path, array)
    assert refused == 18


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_file({"a": torch.zeros(9000)}, path),
        lambda path: torch.save(torch.zeros(9000), path),
        lambda path: path.write_bytes(bytes(36_000)),
    ],
    ids=["safetensors", "torch", "Python"],
)
def test_libraries_with_errors_of_their_own(write: Callable[[Path], None], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "a"
        path.write_bytes(b"as it was")
        leave_room(disk, 16)
        with pytest.raises(FileError) as raised, atomic_path(path) as temporary:
            write(temporary)
        assert str(raised.value) == full(path)
        assert files(disk).keys() == {"a", "filler"}
        assert path.read_bytes() == b"as it was"


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^mine$"), atomic_path(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(OSError, match=r"^without a number$"), atomic_path(tmp_path / "a"):
        raise OSError("without a number")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_rows_that_are_kept(
    tmp_path: Path, no_private_folder: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Shards that were whole are not computed again; the rest goes to a temporary folder, if there is one."""
    if elsewhere:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    computed: list[int] = []

    def compute(start: int, stop: int) -> np.ndarray:
        computed.append(start)
        return np.arange(start, stop, dtype=np.int16)[:, None].repeat(64, 1)

    def rows(folder: Path) -> np.ndarray:
        return sharded_rows(
            folder,
            (400, 64),
            np.int16,
            compute,
            shard_size=100,
            bar=partial(make_bar, desc="", unit="", disable=True),
        )

    with small_disk(tmp_path / "disk") as disk:
        filler = leave_room(disk, 10 * PAGE_KIB)
        if elsewhere:
            np.testing.assert_array_equal(rows(disk / "rows"), rows(disk / "rows"))
            assert computed == [0, 100, 200, 200, 300]
            assert sorted(path.name for path in (disk / "rows").iterdir()) == [
                "shard-000000000.npy",
                "shard-000000100.npy",
            ]
            return
        with pytest.raises(FileError) as raised:
            rows(disk / "rows")
        assert str(raised.value) == full(disk / "rows" / "shard-000000200.npy")
        filler.unlink()
        resumed = rows(disk / "rows")
        assert computed == [0, 100, 200, 200, 300]
        np.testing.assert_array_equal(resumed, rows(tmp_path / "rows"))
        del resumed


@pytest.mark.slow
def test_token_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full after more and more of the shards; each time the same command goes on."""
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))

    def encode(folder: Path) -> int:
        command = ["--plugin", str(PARTS / "train_parts.py"), "data", "encode"]
        command += [str(PARTS / "squares.yaml"), "-o", str(folder), "--quiet"]
        return main([*command, "--shard-size", "4", "dataset.num_documents=40"])

    assert encode(tmp_path / "whole") == 0
    whole = files(tmp_path / "whole")
    places = set()
    for kib in (0, 12, 28, 40, 64, 80):
        with small_disk(tmp_path / "disk", 1024) as disk:
            filler = leave_room(disk, kib)
            capsys.readouterr()
            assert encode(disk / "out") == 2
            said = capsys.readouterr().err
            assert said.startswith(f"error: {disk}/out/")
            assert tells(said, "... : can't be written (No space")
            places.add(said.partition(":")[2].partition(":")[0])
            assert not (disk / "out" / "manifest.json").exists()
            filler.unlink()
            assert encode(disk / "out") == 0
            assert files(disk / "out") == whole
    assert len(places) > 2


@pytest.mark.slow
def test_banks_that_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    banks = [str(built(tmp_path / str(start), 40, start).folder) for start in (0, 40)]
    assert main(["memory", "merge", *banks, "-o", str(tmp_path / "whole")]) == 0
    with small_disk(tmp_path / "disk") as disk:
        for kib in (0, 40, 150):
            filler = leave_room(disk, kib)
            capsys.readouterr()
            assert main(["memory", "merge", *banks, "-o", str(disk / "out")]) == 2
            assert capsys.readouterr().err.endswith(f"error: {full(disk / 'out')}\n")
            assert files(disk).keys() == {"filler"}
        filler.unlink()
        assert main(["memory", "merge", *banks, "-o", str(disk / "out")]) == 0
        assert files(disk / "out") == files(tmp_path / "whole")


def test_banks_that_are_merged_without_duplicates(tmp_path: Path) -> None:
    """Shards that lose documents are written again, in a place that is gone when the error is read."""
    banks = [built(tmp_path / str(start), 8, start).folder for start in (0, 5)]
    with small_disk(tmp_path / "disk") as disk:
        for kib in (0, 40, 68):  # its folder, a shard, the manifest
            leave_room(disk, kib)
            with pytest.raises(FileError) as raised:
                merge_banks(banks, disk / "out", skip_duplicates=True, progress=False)
            assert str(raised.value) == full(disk / "out")
            assert files(disk).keys() == {"filler"}


AGAIN = "next: free space on that disk, then run the same command again"


def no_room(bank: Path, step: str) -> str:
    return f"{bank}: can't be written (No space left on device); the bank is unchanged\n  {step}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "step"),
    [
        (
            lambda bank: add_documents(
                bank, source(20, 50), tools(), Shards(size=4), progress=False
            ),
            f"{AGAIN}: it resumes",
        ),
        (lambda bank: remove_documents(bank, [f"d{i}" for i in range(0, 24, 3)]), AGAIN),
    ],
    ids=["add", "remove"],
)
def test_a_bank_that_is_changed(
    change: Callable[[Path], object], step: str, tmp_path: Path
) -> None:
    """Whichever file is the first without room, the bank is what it was, and then what it was to be."""
    before = built(tmp_path / "bank", 24).folder
    after = tmp_path / "after"
    shutil.copytree(before, after)
    change(after)
    for kib in range(0, 1000, 36):
        with small_disk(tmp_path / "disk", 1024) as disk:
            bank = disk / "bank"
            shutil.copytree(before, bank)
            filler = leave_room(disk, kib)
            room = os.statvfs(disk).f_bavail
            told = []
            try:
                change(bank)
            except FileError as error:
                told.append(str(error))
            if told:
                assert told == [no_room(bank, step)]
                assert contents(MemoryBank.open(bank)) == contents(MemoryBank.open(before))
                if step == AGAIN:  # nothing goes on from what was written
                    assert os.statvfs(disk).f_bavail == room
                filler.unlink()
                change(bank)
            assert files(bank) == files(after)
            if not told:
                break
    assert 100 < kib < 900, "from no room to enough"


@pytest.mark.slow
def test_a_bank_by_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path or "." for path in sys.path))

    def build(folder: Path, processes: int) -> int:
        command = ["--plugin", str(PARTS / "train_parts.py"), "memory", "build"]
        command += [str(PARTS / "squares.yaml"), "-o", str(folder), "--quiet", "--shard-size", "4"]
        return main([*command, "--processes", str(processes), "dataset.num_documents=60"])

    assert build(tmp_path / "whole", 1) == 0
    whole = files(tmp_path / "whole")
    with small_disk(tmp_path / "disk") as disk:
        filler = leave_room(disk, 150)
        capfd.readouterr()
        assert build(disk / "bank", 2) == 2
        told = capfd.readouterr().err  # also what the other process writes
        assert tells(told, f"... error: {disk}/bank: can't be written (No space left")
        assert told.count("No space left on device") == 1
        filler.unlink()
        assert build(disk / "bank", 2) == 0
        assert files(disk / "bank") == whole
