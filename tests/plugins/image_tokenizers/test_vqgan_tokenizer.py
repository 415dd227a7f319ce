"""The VQGAN behind the image tokenizer interface: the kit's laws, weights files, fingerprints,
recipes, errors."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cm3core.errors import CheckpointError, RecipeError, TokenizerError
from cm3core.plugins import load_registry
from cm3core.recipe import compose
from cm3kits.image_tokenizer import ImageTokenizerContract
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.model import VQModel
from cm3plugins.image_tokenizers.vqgan.settings import VQGANTraining
from cm3plugins.image_tokenizers.vqgan.tokenizer import (
    VQGANTokenizer,
    load_weights,
    save_weights,
    weights_file,
)
from cm3run.evaluation.quality import (
    evaluate_image_tokenizer,
    perplexity_of,
    psnr_per_picture,
)
from messages import tells

TINY = VQGANConfig(
    weights=None,
    resolution=16,
    ch=16,
    ch_mult=(1, 2),
    z_channels=8,
    embed_dim=4,
    codebook_size=32,
    patch_size=2,
    norm_groups=4,
)


def tiny_model() -> VQModel:
    torch.manual_seed(0)
    model = VQModel(TINY.architecture)
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.3)
    return model


class TestVQGANTokenizer(ImageTokenizerContract):
    config = TINY

    def make(self) -> VQGANTokenizer:
        return VQGANTokenizer(tiny_model())

    def waive_decoded_pictures_are_the_encoded_ones(self) -> str:
        return "its weights are random"


class TestBundledTokenizer(ImageTokenizerContract):
    config = VQGANConfig()
    max_examples = 2
    tied_share = 0.01  # 1 of 768 was seen


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(
        path, TINY.architecture, tiny_model().state_dict(), half=True, notes={"seconds": "1"}
    )
    return path


def test_file_gives_back_the_network(weights: Path) -> None:
    """fp16 but for the codebook: what comes back is what was stored, rounded."""
    tokenizer = replace(TINY, weights=str(weights)).build()
    stored = tiny_model().state_dict()
    for name, tensor in tokenizer.model.state_dict().items():
        expected = stored[name] if name.startswith("quantize.") else stored[name].half().float()
        assert torch.equal(tensor, expected), name
    assert (tokenizer.image_size, tokenizer.grid, tokenizer.codebook_size) == ((16, 16), (4, 4), 32)
    assert (TINY.image_size, TINY.grid) == ((16, 16), (4, 4))


@pytest.mark.parametrize("half", [True, False])
def test_a_checkpoints_copy_is_exact_and_no_larger_than_the_file(
    tmp_path: Path, half: bool
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, TINY.architecture, tiny_model().state_dict(), half=half)
    tokenizer = replace(TINY, weights=str(path)).build()
    (tmp_path / "copy").mkdir()
    tokenizer.save(tmp_path / "copy")
    copy = tmp_path / "copy" / "model.safetensors"
    assert copy.stat().st_size == path.stat().st_size
    path.unlink()
    loaded = replace(TINY, weights=str(path), weights_sha256="of the file").load(tmp_path / "copy")
    for name, tensor in tokenizer.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    copy.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(
        CheckpointError, match=r"copy/model\.safetensors: is not a readable safetensors file"
    ):
        TINY.load(tmp_path / "copy")


def test_fingerprint_covers_what_codes_mean(weights: Path) -> None:
    """Encoder, codebook and shape change it; the weights that only draw, and the file's notes, do
    not."""
    base = VQGANTokenizer(tiny_model()).fingerprint
    assert len(base) == 64
    for name, changes in (
        ("encoder.conv_in.weight", True),
        ("quant_conv.bias", True),
        ("quantize.embedding.weight", True),
        ("decoder.conv_out.bias", False),
        ("post_quant_conv.weight", False),
    ):
        model = tiny_model()
        model.state_dict()[name].view(-1)[0].add_(0.5)
        assert (VQGANTokenizer(model).fingerprint != base) == changes, name
    other = VQModel(replace(TINY, beta=0.5).architecture)
    other.load_state_dict(tiny_model().state_dict())
    assert VQGANTokenizer(other).fingerprint != base


def test_fingerprints_stay_as_checkpoints_and_banks_have_them() -> None:
    """The bundled model opens only with the tokenizer that it was trained with; new keys of other
    encoders are no part of this one."""
    assert (
        VQGANConfig(weights="bundled:emoji64").build().fingerprint
        == "0835103656dd47f00b2917d08182fff9d93df29ae8fb1d48dd577e2b635114e2"
    )


def test_codes_do_not_depend_on_the_batch() -> None:
    """A picture alone, among others, or behind a batch border gets the same codes (bundled
    weights)."""
    rng = np.random.default_rng(1)
    pictures = (
        rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    )
    tokenizer = VQGANConfig().build()
    together = tokenizer.encode(pictures)
    alone = np.concatenate([tokenizer.encode(pictures[i : i + 1]) for i in (0, 31, 32, 39)])
    # a tie within rounding may fall either way
    assert (together[[0, 31, 32, 39]] == alone).mean() > 0.999


def test_bundled_tokenizer_keeps_pictures() -> None:
    """The shipped weights redraw simple drawings: a disc on white, another colour each."""
    y, x = np.mgrid[:64, :64]
    disc = ((y - 32) ** 2 + (x - 32) ** 2 < 20**2)[None, :, :, None]
    colours = np.array([[220, 40, 40], [40, 160, 60], [60, 90, 220], [250, 200, 30]], np.uint8)[
        :, None, None
    ]
    pictures = np.where(disc, colours, np.uint8(255)).astype(np.uint8)
    report = evaluate_image_tokenizer(VQGANConfig().build(), pictures)
    assert report.psnr > 24
    assert VQGANConfig().grid == (16, 16)
    assert VQGANConfig().codebook_size == 1024


def test_measures_by_hand() -> None:
    """An error of 5 everywhere is 10 log10(65025 / 25) dB; codes 0, 0, 1, 1 have perplexity 2."""
    pictures = np.full((1, 2, 2, 3), 100, np.uint8)
    assert psnr_per_picture(pictures, pictures + 5)[0] == pytest.approx(34.1514, abs=1e-4)
    assert psnr_per_picture(pictures, pictures)[0] > 100
    assert perplexity_of(np.array([[0, 0, 1, 1]], np.int32), 8) == pytest.approx(2.0)
    with pytest.raises(TokenizerError, match="pictures: are missing"):
        evaluate_image_tokenizer(VQGANTokenizer(tiny_model()), np.zeros((0, 16, 16, 3), np.uint8))


def test_no_weights_says_what_to_do() -> None:
    with pytest.raises(CheckpointError) as caught:
        TINY.build()
    assert tells(caught.value, "image_tokenizer.weights: is null: there are no weights")


def test_weights_of_another_shape_are_refused(weights: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        replace(TINY, weights=str(weights), codebook_size=64, ch_mult=(2, 2)).build()
    assert tells(caught.value, f"{weights}: has another ... ch_mult ... 1 ... 2")


def test_wrong_hash_is_refused(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="the recipe expects 00ff"):
        replace(TINY, weights=str(weights), weights_sha256="00ff").build()


@pytest.mark.parametrize("content", [b"", b"not safetensors", pickle.dumps({"a": 1})])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_weights(path)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, weights: Path) -> None:
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_weights(weights)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="has no 'vqgan_architecture' in its metadata"):
        load_weights(foreign)
    save_weights(foreign, TINY.architecture, {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="do not fit the architecture"):
        replace(TINY, weights=str(foreign)).build()
    strange = {"vqgan_architecture": json.dumps({"breadth": 3})}
    save_file({"a": torch.zeros(1)}, foreign, strange)
    with pytest.raises(CheckpointError, match="its architecture can't be read"):
        load_weights(foreign)
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no such bundled tokenizer"):
        replace(TINY, weights="bundled:emoji65").build()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ch", 0, "image_tokenizer.ch: is 0, must be at least 1"),
        ("ch_mult", [], "image_tokenizer.ch_mult: is [], must be positive numbers"),
        (
            "resolution",
            62,
            "image_tokenizer.resolution: is 62, not ... factor 4",
        ),
        ("norm_groups", 7, "image_tokenizer.norm_groups: 7 groups don't divide 128"),
        (
            "depth",
            2,
            "image_tokenizer.depth: is 2, but the encoder 'convolutional' has one code a place ... next: set "
            "image_tokenizer.encoder=squares, or depth to 1",
        ),
    ],
)
def test_impossible_shapes_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        VQGANConfig(**{key: value}).check()
    assert tells(caught.value, message)


def test_impossible_training_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"image_tokenizer\.training\.batch_size: is 0, must be at least 1"
    ):
        VQGANConfig(training=VQGANTraining(batch_size=0)).check()


def test_recipes_describe_the_tokenizers() -> None:
    """`tokenizer-emoji64` is how the bundled weights were made; `tokenizer-vqgan-f8` has the
    paper's geometry."""
    registry = load_registry()
    emoji = compose("tokenizer-emoji64", registry=registry)
    assert isinstance(emoji.image_tokenizer, VQGANConfig)
    assert emoji.image_tokenizer == VQGANConfig(weights=None)
    path = weights_file("bundled:emoji64")
    assert emoji.image_tokenizer.architecture == load_weights(path)[0]
    with safe_open(str(path), framework="pt") as file:
        recorded = json.loads(file.metadata()["run"])["training"]
    stated = json.loads(json.dumps(asdict(emoji.image_tokenizer.training)))
    assert {key: stated[key] for key in recorded if key != "num_threads"} == {
        key: value for key, value in recorded.items() if key != "num_threads"
    }
    f8 = compose("tokenizer-vqgan-f8", registry=registry)
    assert isinstance(f8.image_tokenizer, VQGANConfig)
    assert (f8.image_tokenizer.grid, f8.image_tokenizer.codebook_size) == ((32, 32), 8192)
    for recipe in (emoji, f8):
        recipe.check()


def test_describing_imports_no_torch() -> None:
    code = "import sys, cm3plugins.image_tokenizers.vqgan; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=False
        ).returncode
        == 0
    )
