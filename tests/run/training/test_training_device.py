"""Devices and precisions: what is chosen, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cm3core.errors import DeviceError, FileError
from cm3core.plugins import Registry
from cm3run.devices import choose_device, choose_precision
from cm3run.training.loop import train
from squares import squares


def test_devices_that_are_not_there(registry: Registry, cache: Path, tmp_path: Path) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    for name in ("banana", "cuda:99"):
        with pytest.raises(DeviceError) as caught:
            train(squares(registry, cache), tmp_path / "out", registry, device=name, progress=False)
        assert str(caught.value).startswith(f"device {name!r}: can't be used here (")
        assert str(caught.value).endswith(")\n  next: use cpu, or cuda on a machine with a GPU")
    (tmp_path / "file").touch()
    with pytest.raises(FileError) as caught_file:
        train(squares(registry, cache), tmp_path / "file", registry, progress=False)
    assert str(caught_file.value) == f"{tmp_path / 'file'}: is a file\n  next: name a folder"
    assert not (tmp_path / "out").exists()


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == (None, "fp32 as requested")
    assert choose_precision("bf16", cpu)[0] == torch.bfloat16
    dtype, reason = choose_precision("auto", cpu)
    able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert dtype == (torch.bfloat16 if able else None)
    assert "this CPU" in reason
