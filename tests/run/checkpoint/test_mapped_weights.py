"""Large weights are mapped: the same predictions as from weights that are read, and the same errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3core.errors import CheckpointError, GenerationError
from cm3core.interfaces.decoder import Decoder
from cm3core.plugins import load_registry
from cm3run.checkpoint import find_model, open_checkpoint, opening
from cm3run.checkpoint.layout import WEIGHTS, find_checkpoint
from cm3run.mapped import is_mapped
from messages import tells


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAPPED_FROM", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a bundled model with weights in float32 (it has no hashes: tests change them)."""
    target = tmp_path_factory.mktemp("model") / "emoji"
    shutil.copytree(find_checkpoint(find_model("bundled:emoji64", load_registry())), target)
    weights = {name: one.float() for name, one in load_file(target / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS)
    return target


def opened(folder: Path) -> Decoder:
    return open_checkpoint(folder, load_registry()).components.decoder


def logits(decoder: Decoder, precision: str) -> torch.Tensor:
    arranged = decoder.for_inference(precision)
    with torch.inference_mode():
        tokens = torch.arange(40).reshape(2, 20) * 7
        cache = arranged.allocate_cache(2, 20)
        return arranged.logits(arranged.hidden_states(tokens, cache=cache))


def test_float32_predicts_the_same_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_file = opened(folder)
    monkeypatch.setattr(opening, "MAPPED_FROM", 1 << 60)
    read = opened(folder)
    assert all(is_mapped(one) for one in from_file.module.parameters())
    assert not any(is_mapped(one) for one in read.module.parameters())
    for precision in ("auto", "fp32", "bf16", "int8", "int4"):
        assert torch.equal(logits(from_file, precision), logits(read, precision)), precision
    # in place: another order of sums
    assert torch.allclose(logits(from_file, "stored"), logits(read, "fp32"), atol=1e-4)


def test_bfloat16_stays_bfloat16(folder: Path, tmp_path: Path) -> None:
    exact = opened(folder)
    shutil.copytree(folder, tmp_path / "half")
    weights = {name: one.bfloat16() for name, one in load_file(folder / WEIGHTS).items()}
    save_file(weights, tmp_path / "half" / WEIGHTS)
    decoder = opened(tmp_path / "half")
    assert {one.dtype for one in decoder.module.parameters()} == {torch.bfloat16}
    assert decoder.for_inference("stored").weight_bytes() == 0
    for precision in ("auto", "stored", "fp32", "bf16", "int8"):
        found = logits(decoder, precision).float()
        assert torch.nn.functional.mse_loss(found, logits(exact, "fp32")) < 0.01, precision
    # weights of bfloat16, everything else exact
    rounded = exact.module
    rounded.load_state_dict({name: one.float() for name, one in weights.items()})
    assert torch.allclose(logits(decoder, "fp32"), logits(exact, "fp32"), atol=1e-5)


def test_weights_that_leave_too_little_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = opened(folder)
    number = sum(one.numel() for one in decoder.module.parameters())
    monkeypatch.setenv("CM3_MEMORY_GB", str(4 * number / 1e9 / 0.6))
    assert decoder.for_inference().weight_bytes() == 4 * number
    monkeypatch.setenv("CM3_MEMORY_GB", str(4 * number / 1e9))  # read in place
    assert decoder.for_inference().weight_bytes() == 0
    assert decoder.for_inference("int8").weight_bytes() == number
    monkeypatch.setenv("CM3_MEMORY_GB", str(number / 1e9))
    with pytest.raises(GenerationError) as error:
        decoder.for_inference("int8")
    assert tells(
        error.value,
        f"precision: the weights take {number / 1000000000.0:,.1f} GB ... {number / 1000000000.0:,.1f}",
    )


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bad")
    path = tmp_path / "bad" / WEIGHTS
    weights = load_file(folder / WEIGHTS)
    name = next(name for name, one in weights.items() if one.ndim == 2)
    weights[name][0, 0] = float("nan")
    save_file(weights, path)
    with pytest.raises(
        CheckpointError, match=f"tensor {name}: contains values that are not finite"
    ):
        opened(tmp_path / "bad")
    save_file({**weights, name: weights[name].to(torch.int32)}, path)
    with pytest.raises(
        CheckpointError, match=f"tensor {name}: is int32, but this decoder needs float32"
    ):
        opened(tmp_path / "bad")
    save_file({key: one for key, one in weights.items() if key != name}, path)
    with pytest.raises(CheckpointError, match=f"tensor {name}: the file has nothing"):
        opened(tmp_path / "bad")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        opened(tmp_path / "bad")
