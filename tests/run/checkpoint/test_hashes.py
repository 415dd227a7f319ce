"""A bit that flipped in a tensor file is noticed wherever the file is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cm3core.errors import CheckpointError
from cm3core.files import sha256_file
from cm3core.plugins import Registry
from cm3core.recipe import Recipe
from cm3run.checkpoint import OPTIMIZER, STATE, WEIGHTS, export_model, layout, open_checkpoint
from cm3run.checkpoint.layout import check_file, read_state
from cm3run.training import train
from messages import tells


def flip(path: Path) -> None:
    """Flip the lowest bit of the last number's mantissa: a value as good as any."""
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def test_state_holds_sizes_and_hashes(spoiled: Path) -> None:
    assert json.loads((spoiled / STATE).read_text())["files"] == {
        name: {"sha256": sha256_file(spoiled / name), "bytes": (spoiled / name).stat().st_size}
        for name in (WEIGHTS, OPTIMIZER)
    }


def test_a_flipped_bit_of_the_weights(
    small_registry: Registry, small_recipe: Recipe, spoiled_run: Path, spoiled: Path, tmp_path: Path
) -> None:
    flip(spoiled / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(spoiled, small_registry)
    assert tells(caught.value, f"{spoiled / WEIGHTS}: has changed ... SHA")
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        train(small_recipe, spoiled_run, small_registry, progress=False)
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        export_model(spoiled, tmp_path / "model")


def test_a_flipped_bit_of_the_optimiser(
    small_registry: Registry, small_recipe: Recipe, spoiled_run: Path, spoiled: Path
) -> None:
    flip(spoiled / OPTIMIZER)
    open_checkpoint(spoiled, small_registry)  # reads the weights alone
    with pytest.raises(CheckpointError, match=f"{OPTIMIZER}: has changed since it was written"):
        train(small_recipe, spoiled_run, small_registry, progress=False)


def test_a_flipped_bit_of_an_exported_model(
    small_registry: Registry, spoiled: Path, tmp_path: Path
) -> None:
    model = export_model(spoiled, tmp_path / "model")
    assert list(read_state(model).files) == [WEIGHTS]
    open_checkpoint(model, small_registry)
    flip(model / WEIGHTS)
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        open_checkpoint(model, small_registry)


def test_checkpoints_without_hashes_open(small_registry: Registry, spoiled: Path) -> None:
    state = json.loads((spoiled / STATE).read_text())
    del state["files"]
    (spoiled / STATE).write_text(json.dumps(state))
    assert open_checkpoint(spoiled, small_registry).step == 4


def test_of_a_large_file_only_the_size_is_compared(
    spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_HASHED", 10)
    state = read_state(spoiled)
    flip(spoiled / WEIGHTS)
    check_file(spoiled, WEIGHTS, state)
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        check_file(spoiled, WEIGHTS, state, whole=True)
    num_bytes = (spoiled / WEIGHTS).stat().st_size
    with (spoiled / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        CheckpointError, match=f"has {num_bytes + 1:,} bytes instead of {num_bytes:,}"
    ):
        check_file(spoiled, WEIGHTS, state)


@pytest.mark.parametrize("files", [[], {WEIGHTS: 1}, {WEIGHTS: {"sha256": 1, "bytes": 2}}])
def test_hashes_of_wrong_types(spoiled: Path, files: object) -> None:
    state = json.loads((spoiled / STATE).read_text())
    (spoiled / STATE).write_text(json.dumps({**state, "files": files}))
    with pytest.raises(CheckpointError, match=STATE):
        read_state(spoiled)
