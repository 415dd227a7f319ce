"""Files of a bank are mapped without staying open, and a system that refuses to open one is no
damage."""

from __future__ import annotations

import errno
import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from built_banks import built
from cm3core.errors import FileError
from cm3run import mapped as mapping
from cm3run.bank import MemoryBank, remove_documents
from cm3run.bank.shard import SHARDS
from cm3run.mapped import map_array, map_bytes
from messages import tells


@given(values=hnp.arrays(st.sampled_from(["<f4", "<u2", "<i4"]), hnp.array_shapes(max_dims=2)))
def test_arrays_are_read_as_numpy_reads_them(
    values: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "values.npy"
    np.save(path, values)
    mapped = map_array(path)
    np.testing.assert_array_equal(mapped, np.load(path))
    assert mapped.dtype == values.dtype
    with pytest.raises(ValueError, match="read-only"):
        mapped.reshape(-1)[:1] = 0


def test_what_is_mapped_stays_when_the_file_goes_and_is_unmapped_with_the_last_view(
    tmp_path: Path,
) -> None:
    path = tmp_path / "values.npy"
    np.save(path, np.arange(100_000))
    view = map_array(path)[50_000:]
    path.unlink()
    assert view[0] == 50_000
    assert str(path) in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "magic string"),
        (b"\x93NUMPY\x01\x00", "EOF|header"),
        (b"no array at all", "magic string"),
    ],
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "values.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        map_array(path)


def test_a_cut_array_and_one_of_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "values.npy"
    np.save(path, np.arange(10))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"has 79 bytes of values, its header says 80"):
        map_array(path)
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="contains Python objects"):
        map_array(path)
    assert map_bytes(path)[:6].tobytes() == b"\x93NUMPY"


@pytest.mark.slow
def test_a_bank_of_many_shards_keeps_no_file_open(tmp_path: Path) -> None:
    """60 shards of four files each, where 40 files may be open."""
    built(tmp_path / "bank", 60, shard_size=1)
    script = (
        "import resource, sys\nfrom cm3run.bank import MemoryBank\n"
        "bank = MemoryBank.open(sys.argv[1])\nprint(len(bank), len(bank.shards))\n"
    )

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bank")],
        capture_output=True,
        text=True,
        preexec_fn=few_files,
    )
    assert (done.returncode, done.stdout) == (0, "60 60\n"), done.stderr


@pytest.mark.parametrize(
    "code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES]
)
def test_what_the_system_refuses_is_never_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    bank = built(tmp_path / "bank", 6, shard_size=2)
    before = sorted(path for path in bank.folder.rglob("*") if path.is_file())

    real = os.open

    def refused(path: Path, *rest: int, **options: int) -> int:
        if SHARDS not in Path(path).parts:
            return real(path, *rest, **options)
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(mapping.os, "open", refused)
    for call in (
        lambda: MemoryBank.open(bank.folder),
        lambda: MemoryBank.open(bank.folder, skip_damaged=True),
        lambda: remove_documents(bank.folder, [], damaged=True, delete=True),
    ):
        with pytest.raises(FileError) as caught:
            call()
        assert f"can't be read now ({os.strerror(code)}); the bank itself is intact" in str(
            caught.value
        )
    monkeypatch.undo()
    assert sorted(path for path in bank.folder.rglob("*") if path.is_file()) == before
    assert len(MemoryBank.open(bank.folder)) == 6


def test_damaged_shards_are_set_aside_and_deleted_only_when_asked(tmp_path: Path) -> None:
    bank = built(tmp_path / "bank", 6, shard_size=2)
    first, second = (shard.folder for shard in bank.shards[:2])
    content = (first / "vectors.npy").read_bytes()[:-1]
    (first / "vectors.npy").write_bytes(content)
    report = remove_documents(bank.folder, [], damaged=True)
    assert (report.num_damaged_shards, report.num_documents) == (1, 4)
    assert report.set_aside == bank.folder / "set-aside"
    assert (report.set_aside / first.name / "vectors.npy").read_bytes() == content
    (second / "vectors.npy").write_bytes(b"")
    report = remove_documents(bank.folder, [], damaged=True, delete=True)
    assert (report.num_damaged_shards, report.set_aside) == (1, None)
    assert not second.exists()
    assert sorted(path.name for path in (bank.folder / "set-aside").iterdir()) == [first.name]


def test_damaged_shards_that_can_not_be_set_aside_are_not_deleted(tmp_path: Path) -> None:
    bank = built(tmp_path / "bank", 6, shard_size=2)
    damaged, aside = bank.shards[0].folder, bank.folder / "set-aside"
    (damaged / "vectors.npy").write_bytes(b"of use to somebody")
    aside.write_text("in the way")
    with pytest.raises(FileError) as raised:
        remove_documents(bank.folder, [], damaged=True)
    assert tells(raised.value, f"{aside}: can't be written (File exists)")
    aside.unlink()
    report = remove_documents(bank.folder, [], damaged=True)
    assert (report.num_damaged_shards, report.num_documents) == (1, 4)
    assert (aside / damaged.name / "vectors.npy").read_bytes() == b"of use to somebody"
