"""Memory-mapped tensors: equal to what is read, pages given back and read again, writes kept apart."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cm3core import mapped
from cm3core.mapped import is_mapped, map_tensors, release


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    tensors = {
        "wide": torch.randn(300, 50),
        "half": torch.randn(513, 64).bfloat16(),
        "one": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "file.safetensors")
    return tmp_path / "file.safetensors", tensors


def test_tensors_equal_those_that_are_read(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = stored
    found = map_tensors(path)
    assert found is not None
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert is_mapped(found["wide"][7:])
    assert not is_mapped(tensors["wide"])


def test_released_pages_are_read_again_and_changes_stay(
    stored: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    path, tensors = stored
    found = map_tensors(path)
    assert found is not None
    found["half"][3] = 7
    release(*found.values(), tensors["half"])
    tensors["half"][3] = 7
    assert torch.equal(found["half"], tensors["half"])
    assert torch.equal(found["wide"], tensors["wide"])
    again = map_tensors(path)
    assert again is not None
    assert float(again["half"][3, 0]) != 7  # the file is as it was


def test_a_mapping_ends_with_its_tensors(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    before = len(mapped._mappings)
    found = map_tensors(stored[0])
    assert found is not None
    last = found["wide"][1:]
    del found
    gc.collect()
    assert len(mapped._mappings) == before + 1
    assert is_mapped(last)
    del last
    gc.collect()
    assert len(mapped._mappings) == before


def test_what_can_t_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "integers.safetensors"
    save_file({"a": torch.arange(5)}, path)
    assert map_tensors(path) is None
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(SafetensorError):
        map_tensors(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))  # cut off
    with pytest.raises(SafetensorError):
        map_tensors(path)
    # its type's alignment is not the file's: reading it would need a copy
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (1 - len(header) % 4 + 4)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert map_tensors(path) is None
