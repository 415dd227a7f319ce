"""Tests of `cm3run.npy`: a file that is malformed in any way is a `ValueError`."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from cm3core.errors import FileError
from cm3core.files import atomic_path
from cm3run.mapped import map_array
from cm3run.npy import allocate, load_array
from messages import tells

START = "{'descr': '<f4', 'fortran_order': False, 'shape': "
HEADERS = {
    "unclosed": START + "(3,}",
    "open": "(" * 3000,
    "bytes": b"\xff\xfe{",
    "unhashable": "{[1]: 2}",
    "set": "{1, [2]}",
    "too large": START + "(99999999999999999999, 3), }",
    "overflow": START + "(4611686018427387904, 4), }",
    "digits": START + f"({'9' * 5000}, 3), }}",
    "bool": START + "(True, 3), }",
    "descr": "{'descr': 5, 'fortran_order': False, 'shape': (1, 3), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (1, 3), }",
    "short": START + "(100, 3), }",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_malformed_header(header: str | bytes, tmp_path: Path) -> None:
    data = header if isinstance(header, bytes) else header.encode()
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(64))
    for memory_map in (False, True):
        with pytest.raises(ValueError, match=r".+"), np.errstate(over="ignore"):
            load_array(path, memory_map=memory_map)
    with pytest.raises(ValueError, match=r".+"):
        map_array(path)


def test_a_negative_length(tmp_path: Path) -> None:
    data = (START + "(-1, 3), }").encode()
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(64))
    with pytest.raises(ValueError, match="its header says it has shape"):
        map_array(path)


@pytest.mark.parametrize("data", [b"", b"\x93NUM", b"\x93NUMPY\x01\x00\xff", bytes(200)])
def test_no_array_at_all(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    for read in (load_array, map_array):
        with pytest.raises(ValueError, match=r".*"):
            read(path)


def test_a_whole_array(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "empty.npy", np.zeros((0, 384), np.float32))
    for read in (load_array, map_array):
        assert np.array_equal(read(tmp_path / "x.npy"), array)
        assert read(tmp_path / "empty.npy").shape == (0, 384)
    assert not load_array(tmp_path / "x.npy", memory_map=True).flags.writeable


@pytest.mark.parametrize("missing", ["", "system call", "function"])
def test_allocated_files_have_their_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Also where the file system, or the operating system, can't do so in one call."""

    def unsupported(file: int, offset: int, num_bytes: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    if missing == "system call":
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    elif missing == "function":
        monkeypatch.delattr(os, "posix_fallocate")
    size = (3 << 20) + 5
    with (tmp_path / "file").open("wb+") as file:
        file.write(b"head")
        file.flush()
        file.truncate(4 + size)
        assert os.fstat(file.fileno()).st_blocks * 512 < size
        allocate(file.fileno(), 4, size)
        assert os.fstat(file.fileno()).st_blocks * 512 >= size
    assert (tmp_path / "file").read_bytes() == b"head" + bytes(size)


def test_allocating_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "file"
    with (
        pytest.raises(FileError) as caught,
        atomic_path(path) as temporary,
        temporary.open("rb+") as file,
    ):
        allocate(file.fileno(), 0, 100)
    assert tells(caught.value, f"{path}: can't be written (No space left")
    assert not list(tmp_path.iterdir())
