"""Memory-mapped tensors: equal to what is read, pages given back and read again, writes kept apart."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from cm3run import mapped
from cm3run.mapped import is_mapped, map_tensors, release


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
    found["half"][3] = 7
    release(*found.values(), tensors["half"])
    tensors["half"][3] = 7
    assert torch.equal(found["half"], tensors["half"])
    assert torch.equal(found["wide"], tensors["wide"])
    assert float(map_tensors(path)["half"][3, 0]) != 7  # the file is as it was


def test_pages_are_the_files_own(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, tensors = stored
    found = map_tensors(path)
    assert file_at(found["wide"].data_ptr()) == str(path)
    assert file_at(tensors["wide"].data_ptr()) != str(path)


def file_at(address: int) -> str:
    """The file whose pages this process has at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return " ".join(line.split()[5:])
    raise AssertionError(f"{address:#x} is not mapped")


def test_what_is_made_of_a_mapped_tensor(stored: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = stored
    last = map_tensors(path)["wide"][1:]
    gc.collect()
    layer = nn.Linear(50, 299, bias=False, device="meta")
    layer.load_state_dict({"weight": last}, assign=True)
    assert is_mapped(layer.weight.detach())
    assert not is_mapped(layer.weight.bfloat16())
    before = len(mapped._mapped)
    del last, layer
    gc.collect()
    assert len(mapped._mapped) == before - 1


def test_what_can_t_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(SafetensorError):
        map_tensors(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))  # cut off
    with pytest.raises(SafetensorError):
        map_tensors(path)
