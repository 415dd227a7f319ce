"""`vqgan` with `encoder: squares`: k-means codes of squares of pixels, and a decoder that refines them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3core.errors import DataError, RecipeError
from cm3plugins.image_tokenizers.by_network import to_input
from cm3plugins.image_tokenizers.vqgan import VQGANConfig
from cm3plugins.image_tokenizers.vqgan.model import SquareEncoder, VectorQuantizer, VQModel
from cm3plugins.image_tokenizers.vqgan.settings import (
    LATER_KEYS,
    VQGANArchitecture,
    VQGANTraining,
    facts,
)
from cm3plugins.image_tokenizers.vqgan.tokenizer import VQGANTokenizer
from cm3plugins.image_tokenizers.vqgan.training import fit_squares, train_image_tokenizer
from cm3plugins.trained.training_run import RunOptions
from messages import tells

ARCH = VQGANArchitecture(
    encoder="squares",
    resolution=16,
    patch_size=2,
    ch=8,
    ch_mult=(1, 1),
    num_res_blocks=1,
    z_channels=8,
    embed_dim=48,
    codebook_size=8,
    norm_groups=4,
)
#: Three codes a place, each one of eight.
DEEP = dataclasses.replace(ARCH, codebook_size=24, depth=3)
TRAINING = VQGANTraining(batch_size=4, perceptual_weight=0.0, colour_share=0.3, num_threads=1)


def drawings(number: int, seed: int = 0) -> np.ndarray:
    """Pictures of 4 x 4 squares: white, black, and a red one in every fourth picture."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 2, (number, 4, 4, 1), dtype=np.uint8) * np.full(3, 255, np.uint8)
    tiles[::4, 0, 0] = (255, 0, 0)
    pictures: np.ndarray = tiles.repeat(4, axis=1).repeat(4, axis=2)
    noise = rng.integers(0, 40, (number, 16, 16, 1), dtype=np.uint8)
    return np.where(pictures == 0, noise, pictures)


def fitted(seed: int = 0, arch: VQGANArchitecture = ARCH) -> VQModel:
    torch.manual_seed(0)
    model = VQModel(arch)
    fit_squares(model, TRAINING, drawings(64, seed))
    return model


def test_features_are_luminance_and_weighted_colour_differences() -> None:
    """By hand, of one red pixel: ITU-R BT.601 as JPEG has it, on [-1, 1]."""
    encoder = SquareEncoder(VQGANArchitecture(patch_size=1, chroma_weight=0.5))
    red_1311 = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 3, 1, 1)
    features = encoder(red_1311).flatten().tolist()
    luminance = 0.299 - 0.587 - 0.114
    blue = 0.5 * (-0.168736 + 0.331264 - 0.5)
    red = 0.5 * (0.5 + 0.418688 + 0.081312)
    assert features == pytest.approx([luminance, blue, red], abs=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_pixels_are_the_inverse(seed: int) -> None:
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    encoder = SquareEncoder(ARCH)
    assert torch.allclose(encoder.pixels(encoder(pixels)), pixels, atol=1e-5)


def test_a_code_depends_on_its_own_square_alone() -> None:
    model = fitted()
    pictures = drawings(8, seed=5)
    other = pictures.copy()
    other[:, :, 8:] = 255 - other[:, :, 8:]
    with torch.inference_mode():
        codes, changed = (model.encode(to_input(images)) for images in (pictures, other))
    assert torch.equal(codes[:, :, :2], changed[:, :, :2])
    assert not torch.equal(codes[:, :, 2:], changed[:, :, 2:])


def test_white_has_a_code_and_colours_have_their_share() -> None:
    model = fitted()
    centres = model.encoder.pixels(model.quantize.lookup(torch.arange(8)[:, None, None]))  # type: ignore[operator]  # squares
    assert torch.allclose(centres[0], torch.ones(3, 4, 4), atol=1e-5)
    coloured = (centres.amax(1) - centres.amin(1)).amax((1, 2)) > 0.1
    assert coloured.sum() == round(7 * TRAINING.colour_share)


def test_before_training_the_decoder_shows_the_codes() -> None:
    model = fitted()
    codes = torch.arange(8).reshape(1, 4, 2).repeat(1, 1, 2)
    features = model.quantize.lookup(codes)
    with torch.inference_mode():
        assert torch.equal(model.decode_features(features), model.encoder.pixels(features))  # type: ignore[operator]  # squares


def test_each_code_corrects_the_sum_of_those_before_it() -> None:
    """Two codes of a place by hand: the nearest of the first two entries, then of what is left."""
    quantizer = VectorQuantizer(4, 1, 0.25, l2_normalize=False, depth=2)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [1.0], [0.0], [0.25]])
    codes = quantizer.codes_of_rows(torch.tensor([[0.1], [0.3], [1.1], [1.2]]), quantizer.entries())
    assert codes.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    quantized = quantizer(torch.tensor([0.3, 1.2]).reshape(1, 1, 1, 2))
    assert quantized.codes_BYX.tolist() == [[[0, 3, 1, 3]]]
    assert quantized.z_q_BDYX.flatten().tolist() == pytest.approx([0.25, 1.25])
    assert torch.equal(quantizer.lookup(quantized.codes_BYX), quantized.z_q_BDYX.detach())


def test_codes_of_a_place_are_those_of_the_greedy_search_of_numpy() -> None:
    """An independent search over the same centres, in float64; ties apart there are none in noise."""
    model, pictures = fitted(arch=DEEP), drawings(6, seed=3)
    with torch.inference_mode():
        codes = model.encode(to_input(pictures)).numpy().reshape(6, 4, 4, 3)
        features = model.features(to_input(pictures)).permute(0, 2, 3, 1).double().numpy()
    centres = model.entries().detach().double().numpy().reshape(3, 8, 48)
    left = features
    for stage in range(3):
        distances = np.square(left[..., None, :] - centres[stage]).sum(-1)
        chosen = distances.argmin(-1)
        nearly = np.sort(distances, -1)
        clear = nearly[..., 1] - nearly[..., 0] > 1e-4
        assert np.array_equal(codes[..., stage][clear], 8 * stage + chosen[clear])
        left = left - centres[stage][codes[..., stage] - 8 * stage]


def test_more_codes_of_a_place_keep_more_and_blank_stays_blank() -> None:
    pictures = drawings(32, seed=2)
    errors = []
    for arch in (ARCH, dataclasses.replace(DEEP, codebook_size=16, depth=2), DEEP):
        tokenizer = VQGANTokenizer(fitted(arch=arch))
        codes = tokenizer.encode(pictures)
        assert tokenizer.form.num_codes == codes.shape[1] == 16 * arch.depth
        assert tokenizer.form == VQGANConfig(weights=None, **dataclasses.asdict(arch)).form
        again = tokenizer.decode(codes)
        errors.append(np.square(again.astype(float) - pictures).mean())
        white = np.full((1, 16, 16, 3), 255, np.uint8)
        blank = tokenizer.encode(white)
        assert set(blank[0]) == {8 * stage for stage in range(arch.depth)}
        assert np.array_equal(tokenizer.decode(blank), white)
    assert errors[0] > errors[1] > errors[2] > 0


def test_codes_are_divided_equally_among_the_depth() -> None:
    config = VQGANConfig(encoder="squares", embed_dim=48, codebook_size=10, depth=4)
    with pytest.raises(RecipeError) as error:
        config.check()
    assert tells(
        error.value,
        "image_tokenizer.codebook_size: is 10, not a multiple of depth 4 ... next: each code of a place has an equal "
        "part of it: use 12",
    )


def test_too_few_different_squares_are_refused() -> None:
    with pytest.raises(DataError) as error:
        fit_squares(VQModel(ARCH), TRAINING, drawings(64)[:0])
    assert tells(error.value, "image_tokenizer: only 0 squares of ... 7")


@pytest.mark.parametrize("colour_share", [0.0, 0.3, 1.0])
def test_pictures_that_are_all_coloured_have_all_codes(colour_share: float) -> None:
    """Photographs: no square is grey, and the codes of grey ones are not missing from anything."""
    pictures = np.random.default_rng(0).integers(0, 200, (8, 16, 16, 3), dtype=np.uint8)
    pictures[..., 0] = 255
    model = VQModel(ARCH)
    fit_squares(model, dataclasses.replace(TRAINING, colour_share=colour_share), pictures)
    centres = model.quantize.embedding.weight
    assert len(torch.unique(centres, dim=0)) == 8


def test_squares_of_both_kinds_together_are_too_few() -> None:
    """Four coloured ones and two grey ones, by hand, for the seven codes beside white."""
    pictures = np.full((1, 16, 16, 3), 255, np.uint8)
    pictures[0, :4] = (255, 0, 0)
    pictures[0, 4:8, :8] = 9
    with pytest.raises(DataError) as error:
        fit_squares(VQModel(ARCH), TRAINING, pictures)
    assert (
        error.value.cause == "only 6 squares of the pictures are not blank, but there are 7 codes"
    )


def test_a_code_has_a_value_for_each_pixel() -> None:
    config = VQGANConfig(encoder="squares", embed_dim=16)
    with pytest.raises(RecipeError) as error:
        config.check()
    assert tells(error.value, "image_tokenizer.embed_dim: is 16, but ... of 4 ... has 48")


@pytest.mark.parametrize("arch", [ARCH, DEEP])
def test_training_leaves_the_codes_alone(tmp_path: Path, arch: VQGANArchitecture) -> None:
    pictures = drawings(64)
    whole = train_image_tokenizer(
        arch, TRAINING, pictures, tmp_path / "whole", RunOptions(steps=6, show_progress=False)
    )
    train_image_tokenizer(
        arch, TRAINING, pictures, tmp_path / "cut", RunOptions(steps=3, show_progress=False)
    )
    start = VQGANTokenizer.from_file(tmp_path / "cut" / "model.safetensors", arch)
    end = VQGANTokenizer.from_file(whole, arch)
    assert np.array_equal(start.encode(pictures), end.encode(pictures))
    assert not np.array_equal(
        start.decode(start.encode(pictures)), end.decode(end.encode(pictures))
    )
    assert start.fingerprint == end.fingerprint


def test_training_brings_the_pictures_nearer(tmp_path: Path) -> None:
    pictures = drawings(64)
    path = train_image_tokenizer(
        ARCH, TRAINING, pictures, tmp_path, RunOptions(steps=60, show_progress=False)
    )
    trained = VQGANTokenizer.from_file(path, ARCH)
    codes = trained.encode(pictures)

    def error(tokenizer: VQGANTokenizer) -> float:
        return float(np.square(tokenizer.decode(codes).astype(float) - pictures).mean())

    assert error(trained) < error(VQGANTokenizer(fitted()))


def test_the_facts_of_older_networks_are_what_they_were() -> None:
    """Fingerprints of convolutional tokenizers, and their unfinished trainings, stay valid."""
    old = VQGANArchitecture()
    assert not set(facts(old, old)) & set(LATER_KEYS)
    assert not set(facts(VQGANTraining(), old)) & set(LATER_KEYS)
    assert facts(VQGANTraining(precision="bfloat16"), old)["precision"] == "bfloat16"
    assert facts(ARCH, ARCH) | {"depth": 1} == dataclasses.asdict(ARCH)
    assert facts(DEEP, DEEP) == dataclasses.asdict(DEEP)
    bundled = VQGANConfig().build()
    assert bundled.fingerprint == (
        "0835103656dd47f00b2917d08182fff9d93df29ae8fb1d48dd577e2b635114e2"
    )
