"""Tests of `cm3run.npy`: a file that is malformed in any way is a `ValueError`."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from cm3run.mapped import map_array
from cm3run.npy import load_array

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
