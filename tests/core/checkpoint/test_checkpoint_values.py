"""Values that can't be a run's are refused with a message, wherever in a checkpoint they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cm3core.checkpoint import STATE, WEIGHTS, open_checkpoint, read_state, read_tensors
from cm3core.errors import CheckpointError
from cm3core.plugins import Registry


def set_state(checkpoint: Path, **values: Any) -> None:
    """Replace values of `state.json`; hashes are left out."""
    state = json.loads((checkpoint / STATE).read_text()) | {"files": {}} | values
    (checkpoint / STATE).write_text(json.dumps(state))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_type(
    small_registry: Registry, spoiled: Path, dtype: torch.dtype
) -> None:
    set_state(spoiled)
    tensors = read_tensors(spoiled / WEIGHTS)
    name = min(tensors)
    save_file({**tensors, name: tensors[name].to(dtype)}, spoiled / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(spoiled, small_registry)
    word = str(dtype).removeprefix("torch.")
    assert str(caught.value) == (
        f"{spoiled / WEIGHTS}, tensor {name}: holds {word}, this decoder float32\n"
        "  next: use an older checkpoint, or copy it again from where it came"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_weights_load(
    small_registry: Registry, spoiled: Path, dtype: torch.dtype
) -> None:
    set_state(spoiled)
    tensors = read_tensors(spoiled / WEIGHTS)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, spoiled / WEIGHTS)
    opened = open_checkpoint(spoiled, small_registry)
    assert all(p.dtype == torch.float32 for p in opened.components.decoder.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -5),
        ("step", True),
        ("step", 10**400),
        ("step", 2**63),
        ("tokens", -1),
        ("tokens", False),
        ("elapsed_s", -0.5),
        ("elapsed_s", float("nan")),
        ("elapsed_s", float("inf")),
        ("elapsed_s", 10**400),
        ("format", 0),
        ("format", True),
    ],
)
def test_counters_that_can_not_be(spoiled: Path, name: str, value: Any) -> None:
    set_state(spoiled, **{name: value})
    with pytest.raises(CheckpointError) as caught:
        read_state(spoiled)
    assert caught.value.place == str(spoiled / STATE)
    if isinstance(value, bool):
        assert caught.value.cause == "is not a checkpoint's state"
    else:
        assert caught.value.cause == f"has a {name} that can't be: {str(value)[:40]}"
