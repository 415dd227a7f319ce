"""A training that has diverged writes no weights, and weights that are not finite are not read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cm3apps.cli.main import main
from cm3core import images
from cm3core.errors import CheckpointError
from cm3plugins.embedders.weights import read_weights
from cm3plugins.image_tokenizers import vqgan
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.tokenizer import load_weights
from cm3plugins.trained.weights_file import first_not_finite
from cm3plugins.upscalers.edsr import EDSRConfig
from messages import tells

NAN, INFINITE = float("nan"), float("inf")


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    assert first_not_finite({"a": torch.ones(2), "b": torch.arange(3)}) is None
    for value in (NAN, INFINITE, -INFINITE):
        tensors = {"a": torch.ones(2), "b": torch.tensor([1.0, value]), "c": torch.tensor([value])}
        assert first_not_finite(tensors) == "b"


def test_embedders_read_finite_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(
        {"weight": torch.full((2, 2), NAN)}, path, {"cm3leon": json.dumps({"format": "test"})}
    )
    with pytest.raises(CheckpointError, match="weight contains NaN or infinity"):
        read_weights(path, "test", "train one")


@pytest.mark.parametrize("recipe", ["tokenizer-emoji64", "upscaler-emoji256"])
def test_a_diverged_training_ends_with_an_error_and_saves_nothing(
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At a learning rate of 1e38, which the check of recipes refuses but for this test, through the command:
    exit code 2, no weights, and no success."""
    section, command = (
        ("image_tokenizer", ["tokenizer", "train-image"])
        if recipe.startswith("tokenizer")
        else ("upscaler", ["upscaler", "train"])
    )
    narrow = (
        [
            "ch=8",
            "z_channels=8",
            "embed_dim=4",
            "norm_groups=4",
            "codebook_size=16",
            "training.codebook_init_steps=1",
            "training.perceptual_weight=0",
        ]
        if section == "image_tokenizer"
        else ["num_channels=4", "num_blocks=1", "training.reconstructed_share=0"]
    )
    for config in (VQGANConfig, EDSRConfig):
        monkeypatch.setitem(config.ranges, "training.learning_rate", (0, 1e39))  # type: ignore[arg-type]  # a dict here
    pictures, out = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    for number in range(8):
        pixels = np.full((256, 256, 3), 30 * number, np.uint8)
        images.save_png(pictures / f"{number}.png", pixels, {})
        (pictures / f"{number}.txt").write_text(f"grey {number}")
    settings = [
        *narrow,
        "training.learning_rate=1e38",
        "training.batch_size=2",
        "training.warmup_steps=1",
    ]
    code = main(
        [
            *command,
            recipe,
            *(f"{section}.{setting}" for setting in settings),
            "dataset=folder",
            f"dataset.path={pictures}",
            "train.validation_splits=[]",
            "--steps",
            "8",
            "-o",
            str(out),
        ]
    )
    shown = capsys.readouterr()
    assert code == 2, shown.out
    assert "training has diverged: " in shown.err
    assert not list(out.glob("*.safetensors"))


def test_a_tokenizer_that_is_not_finite_is_not_read(tmp_path: Path) -> None:
    bundled = Path(vqgan.__file__).parent / "assets" / "emoji64" / "model.safetensors"
    with safe_open(bundled, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(bundled)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = NAN
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path)
    assert tells(caught.value, f"{path}: {name} contains NaN")
